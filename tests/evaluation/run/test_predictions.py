import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.protocols import PROTOCOLS
from diffdepth_jax.evaluation.run import files, predictions

RELEASE = PROTOCOLS["release"]


def score_predictions(predicted, measured, protocol, *arguments, **options):
    """Under one protocol."""
    results = predictions.score_predictions(predicted, measured, [protocol], *arguments, **options)
    return results[protocol.name]


def save_png(path, depth, scale=256):
    Image.fromarray(np.rint(depth * scale).astype(np.uint16)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Two frames: predictions as `.npy`, ground truth as PNG, in steps of 1/8 m."""
    generator = np.random.default_rng(0)
    predicted, measured = tmp_path / "predicted", tmp_path / "measured"
    predicted.mkdir(), measured.mkdir()
    for name in ("b", "a"):
        depth = generator.integers(0, 8 * 60, (5, 7)) / 8
        save_png(measured / f"{name}.png", depth)
        np.save(predicted / f"{name}.npy", (depth + 1).astype(np.float32))
    return predicted, measured


def test_either_side_may_be_png_or_npy(folders, tmp_path):
    predicted, measured = folders
    result = score_predictions(predicted, measured, RELEASE, tmp_path / "out", progress=False)
    assert result["metrics"]["mae"] == 1 and result["num_images"] == 2
    assert result["baseline"] == {}
    assert result["options"]["png_scale"] == 256
    with open(tmp_path / "out/per_image.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["a", "b"]

    swapped = score_predictions(measured, predicted, RELEASE, tmp_path / "out", progress=False)
    assert swapped["metrics"]["mae"] > 0 and swapped["num_images"] == 2


def test_png_scales_may_differ(folders, tmp_path):
    predicted, measured = folders
    for path in predicted.iterdir():
        save_png(path.with_suffix(".png"), np.load(path), scale=1000)
        path.unlink()
    result = score_predictions(
        predicted, measured, RELEASE, tmp_path, png_scale=1000, ground_truth_png_scale=256
    )
    assert result["metrics"]["mae"] == 1


def test_png_depth_is_divided_in_float64_and_npy_is_metres(tmp_path):
    Image.fromarray(np.array([[1, 333, 65535]], np.uint16)).save(tmp_path / "a.png")
    depth = predictions.read_prediction(files.find(tmp_path / "a.png"), "a", 1000)
    assert depth.dtype == np.float64 and depth.tolist() == [[0.001, 0.333, 65.535]]
    for shape in ((1, 3, 4), (3, 4, 1)):
        np.save(tmp_path / "b.npy", np.ones(shape, np.float16))
        depth = predictions.read_prediction(files.find(tmp_path), "b", 1000)
        assert depth.tolist() == np.ones((3, 4)).tolist()


def test_a_folder_written_by_predict_is_scored_from_its_npy_files(folders, tmp_path):
    predicted, measured = folders
    np.save(predicted / "c.npy", np.ones((5, 7), np.float32))  # without ground truth
    for name in ("a", "b", "c"):
        save_png(predicted / f"{name}.png", np.ones((5, 7)))
        Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(predicted / f"{name}_colour.png")
    result = score_predictions(predicted, measured, RELEASE, tmp_path / "out", progress=False)
    assert result["num_images"] == 2 and result["metrics"]["mae"] == 1
    assert result["options"]["predictions"] == "npy"
    assert result["options"]["ground_truth"] == "png"
    assert result["options"]["predictions_without_ground_truth"] == 4
    pattern = predicted / "?.png"
    result = score_predictions(pattern, measured, RELEASE, tmp_path / "out", progress=False)
    assert result["options"]["predictions"] == "png" and result["metrics"]["mae"] > 1


def test_a_ground_truth_needs_a_prediction(folders, tmp_path):
    predicted, measured = folders
    (predicted / "a.npy").rename(predicted / "c.npy")
    with pytest.raises(ValueError, match=r"1 of 2 have no prediction .*predicted: a; it has b, c$"):
        score_predictions(predicted, measured, RELEASE, tmp_path / "out")
    for index in range(30):
        save_png(measured / f"x{index:02}.png", np.ones((5, 7)))
    with pytest.raises(ValueError, match=r"31 of 32 .*x08 and 21 more"):
        score_predictions(predicted, measured, RELEASE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def tree(folder, *names):
    for name in names:
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((2, 3), 1 + len(name)))
    return folder


def pairs(wanted, folder):
    found = files.find(folder)
    names = files.match([[name] for name in wanted], found)
    return dict(zip(wanted, names, strict=True))


def test_files_are_matched_by_path(tmp_path):
    frames = [f"2011_09_26/drive_{drive}/data/{index}" for drive in (1, 2) for index in (5, 6)]
    same = tree(tmp_path / "same", *frames)
    assert pairs(frames, same) == {name: name for name in frames}
    fewer = [name.removeprefix("2011_09_26/") for name in frames]
    assert pairs(frames, tree(tmp_path / "fewer", *fewer)) == dict(zip(frames, fewer, strict=True))
    more = [f"model/{name}" for name in frames]
    assert pairs(frames, tree(tmp_path / "more", *more)) == dict(zip(frames, more, strict=True))
    assert pairs(["a"], tree(tmp_path / "below", "x/a")) == {"a": "x/a"}
    assert pairs(["drive_1_data_5"], same) == {"drive_1_data_5": frames[0]}  # an id


def test_ambiguous_names_are_an_error(tmp_path):
    flat = tree(tmp_path / "flat", "5", "6")
    with pytest.raises(DataError, match=r"5 in .*flat matches both drive_1/5 and drive_2/5"):
        pairs(["drive_1/5", "drive_2/5"], flat)
    two = tree(tmp_path / "two", "x/a", "y/a")
    with pytest.raises(DataError, match=r"^a matches several files .* equally well: x/a, y/a"):
        pairs(["a"], two)
    assert pairs(["y/a", "x/a"], two) == {"x/a": "x/a", "y/a": "y/a"}


def test_a_pattern_chooses_among_folders(folders, tmp_path):
    _, measured = folders
    tree(tmp_path / "more", "a")
    with pytest.raises(DataError, match=r"a matches several files .*: more/a, predicted/a"):
        pairs(["a"], tmp_path / "[mp][!e]*" / "a.*")
    assert set(files.find(tmp_path / "more" / "*").paths) == {"a"}
    assert set(files.find(measured).paths) == {"a", "b"}


def test_brackets_in_a_path_and_the_home_directory(folders, tmp_path, monkeypatch):
    predicted, measured = folders
    monkeypatch.setenv("HOME", str(tmp_path))
    predicted = predicted.rename(tmp_path / "run[1]")
    for source in (predicted, predicted / "*.npy", "~/run[1]", "~/run[[]1]/*.npy"):
        found = files.find(source)
        names = files.match([["a"], ["b"]], found)
        assert [found.paths[name] for name in names] == [predicted / "a.npy", predicted / "b.npy"]
    np.save(predicted / "c[1].npy", np.ones((5, 7)))
    save_png(measured / "c[1].png", np.ones((5, 7)))
    one = predicted / "c[1].npy", measured / "c[1].png"
    assert score_predictions(*one, RELEASE, "~/one", progress=False)["num_images"] == 1
    score_predictions("~/run[1]", "~/measured", RELEASE, "~/out", progress=False)
    assert (tmp_path / "out/metrics.json").exists()


def test_a_bad_name_is_reported_and_the_others_are_scored(folders, tmp_path, caplog):
    predicted, measured = folders
    (predicted / "b.npy").unlink()
    (predicted / "b.npy").symlink_to("b.npy")  # a loop
    (predicted / "stray.npy").symlink_to("stray.npy")
    for name in ("\udcff", "n" * 240):
        np.save(predicted / f"{name}.npy", np.full((5, 7), 2.0))
        save_png(measured / f"{name}.png", np.ones((5, 7)))
    result = score_predictions(predicted, measured, RELEASE, tmp_path / "out", progress=False)
    assert (result["num_images"], result["num_unreadable"]) == (3, 1)
    (unreadable,) = result["unreadable"]
    assert unreadable["id"] == "b" and "b.npy cannot be read" in unreadable["error"]
    assert any("stray.npy" in record.getMessage() for record in caplog.records)
    with open(tmp_path / "out/per_image.csv", newline="") as file:
        rows = {row["id"]: row["abs_rel"] for row in csv.DictReader(file)}
    assert rows["\\udcff"] == rows["n" * 240] == "1.0"
    assert "report.html" in {path.name for path in (tmp_path / "out").iterdir()}


def test_half_precision(folders, tmp_path):
    predicted, measured = folders
    for path in predicted.iterdir():
        np.save(path, np.load(path).astype(np.float16))
    result = score_predictions(predicted, measured, RELEASE, tmp_path / "out", progress=False)
    assert result["metrics"]["mae"] == 1
    protocol = protocols.get("release", resize_prediction="bilinear", alignment="median")
    assert score_predictions(predicted, measured, protocol, tmp_path / "out", progress=False)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
@pytest.mark.parametrize("name", ["png_scale", "ground_truth_png_scale"])
def test_scales_are_positive_and_finite(folders, tmp_path, name, scale):
    with pytest.raises(ValueError, match=f"{name} is {scale}; it must be positive and finite"):
        score_predictions(*folders, RELEASE, tmp_path / "out", **{name: scale})


def eight_bit(folder):
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(folder / "b.png")


def truncated_png(folder):
    save_png(folder / "b.png", np.random.default_rng(0).uniform(0, 80, (50, 70)))
    content = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(content[: len(content) // 2])


def truncated_npy(folder):
    np.save(folder / "b.npy", np.ones((5, 7)))
    content = (folder / "b.npy").read_bytes()
    (folder / "b.npy").write_bytes(content[:-20])


def empty_npy(folder):
    (folder / "b.npy").write_bytes(b"")


def objects(folder):
    np.save(folder / "b.npy", np.array([{}]), allow_pickle=True)


def integers(folder):
    np.save(folder / "b.npy", np.ones((5, 7), np.uint16))


def colour(folder):
    np.save(folder / "b.npy", np.ones((5, 7, 3)))


def wrong_size(folder):
    np.save(folder / "b.npy", np.ones((7, 5)))


@pytest.mark.parametrize(
    "damage, message",
    [
        (eight_bit, r"b\.png.*not a 16-bit"),
        (truncated_png, r"b\.png cannot be read"),
        (truncated_npy, r"b\.npy cannot be read"),
        (empty_npy, r"b\.npy cannot be read"),
        (objects, r"b\.npy cannot be read"),
        (integers, r"b\.npy holds uint16 \[5, 7\]"),
        (colour, r"b\.npy holds float64 \[5, 7, 3\]"),
        (wrong_size, "image 'b': the prediction is 7x5 and the ground truth 5x7"),
    ],
)
def test_damaged_files_are_named_and_nothing_is_written(folders, tmp_path, damage, message):
    predicted, measured = folders
    (predicted / "b.npy").unlink()
    damage(predicted)
    with pytest.raises(ValueError, match=message):
        score_predictions(predicted, measured, RELEASE, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_missing_and_empty_folders(folders, tmp_path):
    predicted, _ = folders
    with pytest.raises(FileNotFoundError, match="absent is neither a folder nor a pattern"):
        score_predictions(predicted, tmp_path / "absent", RELEASE, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"empty and its subfolders have no \.png and no \.npy"
    ):
        score_predictions(predicted, tmp_path / "empty", RELEASE, tmp_path / "out")


def test_real_ground_truth_scored_against_itself(shared, tmp_path):
    folder = (
        shared / "data/kitti_depth/val/2011_09_26_drive_9999_sync/proj_depth/groundtruth/image_02"
    )
    protocol = protocols.get("kitti_eigen", crop_reference="full")
    result = score_predictions(folder, folder, protocol, tmp_path, progress=False)
    assert result["metrics"]["abs_rel"] == 0 and result["metrics"]["delta1"] == 1
    with open(tmp_path / "per_image.csv", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert {name: int(row["num_valid"]) for name, row in rows.items()} == {
        "0000000005": 87504,
        "0000000050": 94140,
        "0000000100": 82576,
    }
    assert round(float(rows["0000000005"]["mean_depth"]), 4) == 17.45


def test_scoring_needs_no_jax():
    code = (
        "import sys; from diffdepth_jax.evaluation.run import predictions; "
        "from diffdepth_jax.evaluation.report import tables; "
        "heavy = {'jax', 'flax', 'grain', 'h5py', 'matplotlib', 'tensorflow'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    project = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
