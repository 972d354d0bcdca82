"""Depth of image files, through predict.py and the functions below it."""

import errno
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.errors import FileError
from diffdepth_jax.inference import DepthModel, files
from diffdepth_jax.inference.results import WHAT, Results
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.typing import InputSpec
from tests import scripts
from tests.inference.small_model import image


def test_predict_script_does_the_rest_and_reports_what_it_skips(run, tmp_path):
    images, output = tmp_path / "images", tmp_path / "output"
    images.mkdir()
    Image.fromarray(image(24, 32)).save(images / "a.png")
    Image.fromarray(image(20, 30)).save(images / "c.jpg")
    whole = (images / "a.png").read_bytes()
    (images / "b.png").write_bytes(whole[: len(whole) // 2])
    (images / "notes.txt").write_text("no image")
    flags = (f"--checkpoint={run}", f"--input={images}", f"--output={output}")
    done = scripts.run("predict.py", *flags)
    assert done.returncode == 1, done.stderr
    assert f"skipped {images / 'b.png'}" in done.stderr
    assert "1 of 3 images" in done.stderr
    says, speed = done.stdout.splitlines()
    assert says == f"{run} predicts depth in metres"
    assert re.match(r"2 images in [\d.]+ s: [\d.]+ images/s, and [\d.e+]+ after the first", speed)
    assert "it/s" not in done.stderr and "%|" not in done.stderr  # no bar: not a terminal
    assert sorted(path.name for path in output.iterdir()) == [
        f"{stem}{ending}" for stem in "ac" for ending in (".npy", ".png", "_colour.png")
    ]
    depth = np.load(output / "a.npy")
    assert depth.shape == (24, 32)
    with Image.open(output / "a.png") as picture:
        stored = np.asarray(picture)
    assert stored.dtype == np.uint16
    np.testing.assert_allclose(stored / 256, np.clip(depth, 1 / 256, None), atol=1 / 512 + 1e-6)
    with Image.open(output / "c_colour.png") as picture:
        assert picture.size == (30, 20)


def midas_write_depth(disparity):
    """Finite disparities in 16 bits, as MiDaS's utils.write_depth writes them."""
    low, high = disparity.min(), disparity.max()
    return ((2**16 - 1) * (disparity - low) / (high - low)).astype("uint16")


def test_samples_also_write_their_spread(run, model, tmp_path):
    images, output = tmp_path / "images", tmp_path / "output"
    images.mkdir()
    picture = image(16, 24)
    for name in ("a.png", "b.png"):
        Image.fromarray(picture).save(images / name)
    flags = (f"--checkpoint={run}", f"--input={images}", f"--output={output}", "--num_samples=3")

    def start():
        done = scripts.run("predict.py", *flags, "--skip_existing")
        assert done.returncode == 0, done.stderr

    start()
    mean, spread = model.predict(picture, num_samples=3)
    np.testing.assert_allclose(np.load(output / "a.npy"), mean, rtol=1e-5)
    np.testing.assert_allclose(np.load(output / "a_spread.npy"), spread, rtol=1e-3)
    with Image.open(output / "a.png") as stored:
        np.testing.assert_allclose(np.asarray(stored) / 256, mean, atol=1 / 512 + 1e-3)
    painted = np.asarray(Image.open(output / "a_spread.png"))
    assert painted.dtype == np.uint8 and painted.shape == (16, 24, 3)
    darkness = -painted.sum(-1, dtype=int).ravel()[(spread / mean).ravel().argsort()]
    assert darkness[-50:].mean() > darkness[:50].mean() + 100
    assert len(list(output.iterdir())) == 10
    # Only what is missing is computed again.
    kept = output / "b.npy"
    kept.write_bytes(b"kept")
    (output / "a_spread.png").unlink()
    start()
    assert (output / "a_spread.png").exists() and kept.read_bytes() == b"kept"


def test_without_samples_an_image_with_a_spread_counts_as_done(model, tmp_path):
    paths = pictures(tmp_path / "in", (16, 16))
    files.predict_files(model, paths, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3
    files.predict_files(model, paths, tmp_path / "out", num_samples=2, skip_existing=True)
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_without_samples_the_spread_of_an_earlier_run_is_removed(model, tmp_path):
    paths = pictures(tmp_path / "in", (16, 16), (16, 16))
    output = tmp_path / "out"
    files.predict_files(model, paths, output, num_samples=2)
    other = output / "notes_spread.npy"
    other.write_bytes(b"not a result of these images")
    files.predict_files(model, paths[:1], output)
    spreads = {path.name for path in output.glob("*_spread.*")}
    assert spreads == {"1_spread.npy", "1_spread.png", other.name}
    # A skipped image keeps its spread; with another format, it is in that format only.
    files.predict_files(model, paths[1:], output, skip_existing=True)
    assert (output / "1_spread.npy").exists()
    files.predict_files(model, paths[1:], output, Results(model.output, ("npy",)), num_samples=2)
    assert (output / "1_spread.npy").exists() and not (output / "1_spread.png").exists()


def test_the_result_of_another_image_is_not_mistaken_for_an_old_spread(model, tmp_path):
    paths = pictures(tmp_path / "in", (16, 16), (16, 16))
    paths[1] = paths[1].rename(tmp_path / "in" / "0_spread.png")
    files.predict_files(model, paths, tmp_path / "in" / "out")
    assert len(list((tmp_path / "in" / "out").iterdir())) == 6  # for 0 and for 0_spread


def test_a_spread_replaces_no_other_result(model, tmp_path):
    paths = pictures(tmp_path, (16, 16), (16, 16))
    paths[1] = paths[1].rename(tmp_path / "0_spread.png")
    assert files.predict_files(model, paths, tmp_path / "out") == []
    with pytest.raises(ValueError, match=r"0_spread\.(npy|png).*would overwrite"):
        files.predict_files(model, paths, tmp_path / "other", num_samples=2)
    with pytest.raises(ValueError, match="num_samples is 1; a spread needs at least 2"):
        files.predict_files(model, paths, tmp_path / "other", num_samples=1)
    assert not (tmp_path / "other").exists()


def test_relative_disparity_is_written_as_in_midas(model, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion_depth, "OUTPUT", "relative_disparity")
    Image.fromarray(image(16, 24)).save(tmp_path / "a.png")
    assert files.predict_files(model, [tmp_path / "a.png"], tmp_path / "out") == []
    disparity = np.load(tmp_path / "out" / "a.npy")
    np.testing.assert_array_equal(disparity, model.predict(image(16, 24)))
    stored, colours = (
        np.asarray(Image.open(tmp_path / "out" / f"a{e}")) for e in (".png", "_colour.png")
    )
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, midas_write_depth(disparity))
    assert (stored.min(), stored.max()) == (0, 65535)
    order = disparity.ravel().argsort()
    brightness = colours.sum(-1, dtype=int).ravel()[order]
    assert brightness[-10:].mean() > brightness[:10].mean() + 200  # near is bright
    assert "larger is nearer" in WHAT[model.output]


@pytest.mark.parametrize(
    "disparity, want",
    [
        ([[1.0, 2.0], [np.nan, 3.0]], [[0, 32767], [0, 65535]]),
        ([[np.inf, 5.0], [-np.inf, 6.0]], [[0, 0], [0, 65535]]),
        ([[4.0, 4.0], [4.0, 4.0]], [[0, 0], [0, 0]]),
        ([[np.nan, np.nan], [np.nan, np.nan]], [[0, 0], [0, 0]]),
        ([[4.0]], [[0]]),
    ],
)
def test_constant_and_nonfinite_disparities(tmp_path, disparity, want):
    disparity = np.array(disparity, np.float32)
    unseen = np.zeros((*disparity.shape, 3), np.uint8)
    Results("relative_disparity").write(tmp_path / "a", disparity, None, unseen)
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.array(want, np.uint16))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), disparity)
    with Image.open(tmp_path / "a_colour.png") as picture:
        grey = (np.asarray(picture) == 128).all(-1)
    np.testing.assert_array_equal(grey, ~np.isfinite(disparity))


def test_an_image_too_narrow_for_a_network_is_skipped(model, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion_depth, "INPUT", InputSpec(size=(16, 16), bound="lower"))
    paths = [tmp_path / name for name in ("line.png", "whole.png")]
    for path, size in zip(paths, ((1, 40), (16, 24)), strict=True):
        Image.fromarray(image(*size)).save(path)
    (line,) = files.predict_files(model, paths, tmp_path / "out")
    assert "line.png" in line and "1x40 pixels is too narrow" in line and "16x640" in line
    assert (tmp_path / "out" / "whole.npy").exists()


def test_images_are_found_by_path_directory_or_pattern(tmp_path):
    find = files.find_images
    odd = tmp_path / "p [1].png"
    odd.touch()
    assert find(odd) == find(tmp_path) == find(tmp_path / "*.png") == [odd]
    with pytest.raises(FileNotFoundError, match="no image found"):
        find(tmp_path / "*.bmp")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip.MP4").touch()
    with pytest.raises(FileNotFoundError, match=r"a pattern such as .*videos/\*\.MP4"):
        find(tmp_path / "videos")
    assert [path.name for path in find(tmp_path / "videos" / "*.MP4")] == ["clip.MP4"]


def test_results_keep_the_folders_of_images_that_share_a_stem(model, tmp_path):
    paths = [tmp_path / "in" / drive / "0000000005.png" for drive in ("a", "b")]
    for path in paths:
        path.parent.mkdir(parents=True)
        Image.fromarray(image(16, 16)).save(path)
    found = files.find_images(tmp_path / "in" / "*" / "*.png")
    failures = files.predict_files(model, found, tmp_path / "out")
    assert failures == []
    written = sorted(path.parent.name for path in (tmp_path / "out").rglob("0000000005.npy"))
    assert written == ["a", "b"]


@pytest.mark.parametrize("names", [("a.png",), ("b.png", "b.jpg"), ("c.png", "c_colour.png")])
def test_no_result_replaces_an_image_or_another_result(model, tmp_path, names):
    paths = [tmp_path / name for name in names]
    for path in paths:
        Image.fromarray(image(16, 16)).save(path)
    before = {path: path.read_bytes() for path in paths}
    output = tmp_path if len(names) == 1 else tmp_path / "out"
    with pytest.raises(ValueError, match="would overwrite"):
        files.predict_files(model, paths, output)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_wrong_option_is_an_error_and_not_a_skipped_image(model, tmp_path):
    Image.fromarray(image(16, 16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="num_inference_steps"):
        files.predict_files(model, [tmp_path / "a.png"], tmp_path / "out", num_inference_steps=0)


def pictures(folder, *sizes):
    """Images of these sizes, named by their index."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.png" for index in range(len(sizes))]
    for seed, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        Image.fromarray(image(*size, seed=seed)).save(path)
    return paths


def test_batches_of_files_give_the_same_depth_as_single_files(model, tmp_path):
    paths = pictures(tmp_path / "in", (16, 16), (16, 24), (16, 16), (16, 16), (16, 24))
    for name, batch_size in {"one": 1, "three": 3}.items():
        assert files.predict_files(model, paths, tmp_path / name, batch_size=batch_size) == []
    for path in paths:
        one, three = (np.load(tmp_path / name / f"{path.stem}.npy") for name in ("one", "three"))
        np.testing.assert_allclose(three, one, rtol=1e-5)


def test_many_sizes_do_not_pile_up_in_memory(tmp_path, monkeypatch):
    sizes = [(8, 8 + index) for index in range(40)]
    paths = pictures(tmp_path, *sizes)
    read, original = [], files.read_image
    monkeypatch.setattr(files, "read_image", lambda path: read.append(path) or original(path))
    given = []
    with ThreadPoolExecutor(2) as pool:
        for batch in files._batches(pool, paths, files.read_image, 4, ahead=8, skip=None):
            given += batch
            # 2 * ahead are waiting for a batch, ahead are being read.
            assert len(read) - len(given) <= 3 * 8
    assert sorted(given) == sorted(paths)


def test_an_interrupted_folder_is_resumed_with_what_is_missing(model, tmp_path, monkeypatch):
    paths = pictures(tmp_path / "in", *[(16, 16)] * 5)
    predict = DepthModel.predict
    calls = []

    def interrupted(self, images, **options):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(self, images, **options)

    monkeypatch.setattr(DepthModel, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"of 5 images.*--skip_existing"):
        files.predict_files(model, paths, tmp_path / "out")
    done = len(list((tmp_path / "out").glob("*_colour.png")))
    assert done == 2  # what was already computed is still written
    calls[:] = [0] * 3
    files.predict_files(model, paths, tmp_path / "out", skip_existing=True)
    assert len(calls) - 3 == 5 - done
    assert len(list((tmp_path / "out").iterdir())) == 15


def test_one_bad_name_is_reported_and_the_others_are_done(model, tmp_path):
    folder = tmp_path / "in"
    (good,) = pictures(folder, (16, 16))
    long = folder / ("x" * 245 + ".png")
    long.write_bytes(good.read_bytes())
    loop = folder / "loop.png"
    loop.symlink_to(loop)
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/odd\xff.png"))
    odd.write_bytes(good.read_bytes())
    found = files.find_images(folder)
    assert {long, loop, odd} < set(found)
    failures = files.predict_files(model, found, tmp_path / "out")
    assert len(failures) == 2
    assert any("loop.png" in line for line in failures)
    assert any("xxx" in line and "too long" in line for line in failures)
    assert (tmp_path / "out" / "0.npy").exists()
    assert Path(os.fsdecode(os.fsencode(tmp_path) + b"/out/odd\xff.npy")).exists()


def test_no_result_leaves_the_output_directory(model, tmp_path):
    folder = tmp_path / "a" / "b"
    pictures(folder, (16, 16))
    paths = [folder / ".." / "b" / "0.png", *pictures(tmp_path / "a" / "c", (16, 16))]
    files.predict_files(model, paths, tmp_path / "out")
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.npy"))
    assert written == [Path("out/b/0.npy"), Path("out/c/0.npy")]


def test_brackets_in_the_name_of_a_folder_are_not_a_pattern(tmp_path):
    paths = pictures(tmp_path / "in [d]", (8, 8), (8, 8))
    assert files.find_images(tmp_path / "in [d]") == paths
    assert files.find_images(tmp_path / "in [d]" / "*.png") == paths
    assert files.find_images(tmp_path / "in [d]" / "[0].png") == paths[:1]


def test_a_bug_in_reading_is_not_mistaken_for_a_bad_image(model, tmp_path, monkeypatch):
    def faulty(path):
        raise ValueError("our own bug")

    monkeypatch.setattr(files, "read_image", faulty)
    with pytest.raises(ValueError, match="our own bug"):
        files.predict_files(model, pictures(tmp_path / "in", (8, 8)), tmp_path / "out")


def test_a_full_disk_names_the_file_and_the_cause(model, tmp_path, monkeypatch):
    def full(path, write):
        raise OSError(errno.ENOSPC, "No space left on device")

    paths = pictures(tmp_path / "in", *[(16, 16)] * 3)
    monkeypatch.setattr(Image.Image, "save", lambda *_: full(None, None))
    with pytest.raises(FileError, match=r"out/0\.png.*No space left"):
        files.predict_files(model, paths, tmp_path / "out")


def test_unknown_depth_is_marked_in_the_png(tmp_path):
    class Blind:
        output = "metric_depth"
        input_spec = InputSpec()

        def predict(self, images, **_):
            return [np.array([[np.nan, 1.0]], np.float32) for _ in images]

    Image.new("RGB", (2, 1)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files.predict_files(Blind(), [tmp_path / "a.png"], tmp_path / "out")
    assert np.asarray(Image.open(tmp_path / "out" / "a.png")).tolist() == [[0, 256]]
