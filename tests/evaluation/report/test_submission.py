import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import inference
from diffdepth_jax.evaluation.report import submission
from tests import scripts
from tests.models.networks.test_contract import small


@pytest.fixture
def samples():
    image = np.zeros((3, 4, 3), np.uint8)
    return [{"id": f"{index:010d}", "image": image} for index in range(500)]


def depth_of(sample):
    return np.full((3, 4), 1 + int(sample["id"]) / 10)


def rewrite(path, changes):
    """The archive with some files replaced or, where None, left out."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()} | changes
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            if content is not None:
                archive.writestr(name, content)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def test_five_hundred_maps_with_their_names(samples, tmp_path):
    submission.write(tmp_path / "kitti.zip", samples, depth_of)
    submission.check(tmp_path / "kitti.zip")
    with zipfile.ZipFile(tmp_path / "kitti.zip") as archive:
        assert archive.namelist() == [f"{index:010d}.png" for index in range(500)]
        with archive.open("0000000038.png") as file:
            steps = np.asarray(Image.open(file))
    assert steps.dtype == np.uint16 and (steps == 1229).all()
    first = (tmp_path / "kitti.zip").read_bytes()
    submission.write(tmp_path / "kitti.zip", samples, depth_of)
    assert (tmp_path / "kitti.zip").read_bytes() == first


def test_depths_outside_the_format_stay_valid():
    content = submission.encode(np.array([[0, -3, np.inf, 1e4, 0.002, 80]]), "a", (1, 6))
    steps = np.asarray(Image.open(io.BytesIO(content)))
    assert steps.tolist() == [[1, 1, 65535, 65535, 1, 80 * 256]]


def test_nothing_the_benchmark_would_refuse_is_written(samples, tmp_path):
    path = tmp_path / "kitti.zip"
    with pytest.raises(ValueError, match=r"499 images; .* 1 are missing: 0000000499$"):
        submission.write(path, samples[:-1], depth_of)
    samples[3] = samples[3] | {"id": "0000000777"}
    with pytest.raises(ValueError, match="missing: 0000000003; 1 are unknown: 0000000777"):
        submission.write(path, samples, depth_of)
    with pytest.raises(ValueError, match="'0000000000': its depth is 4x3, but the image is 3x4"):
        submission.write(path, samples, lambda sample: depth_of(sample).T)
    with pytest.raises(ValueError, match="'0000000000': its depth is NaN at 12 pixels"):
        submission.write(path, samples, lambda sample: depth_of(sample) * np.nan)
    assert not list(tmp_path.iterdir())


def test_an_archive_is_checked(samples, tmp_path):
    path = tmp_path / "kitti.zip"
    for changes, message in [
        (
            {"0000000002.png": None, "a/0000000002.png": b""},
            "missing: 0000000002; 1 are unknown",
        ),
        ({"0000000002.png": png(np.ones((3, 4), np.uint8))}, r"2\.png has mode L, not 16-bit"),
        ({"0000000002.png": png(np.eye(3, dtype=np.uint16))}, "no estimate at 6 pixels"),
    ]:
        submission.write(path, samples, depth_of)
        rewrite(path, changes)
        with pytest.raises(ValueError, match=message):
            submission.check(path)
    path.write_text("no archive")
    with pytest.raises(ValueError, match="not a zip archive"):
        submission.check(path)


@pytest.fixture
def kitti(tmp_path):
    folder = tmp_path / "kitti/depth_selection/test_depth_prediction_anonymous"
    (folder / "image").mkdir(parents=True), (folder / "intrinsics").mkdir()
    for name in submission.NAMES:
        (folder / f"image/{name}.png").write_bytes(png(np.zeros((3, 4, 3), np.uint8)))
        (folder / f"intrinsics/{name}.txt").write_text("7 0 2 0 7 1 0 0 1")
    return tmp_path / "kitti"


def test_the_tool_refuses_what_it_cannot_write_before_it_predicts(kitti, tmp_path):
    _, module, variables = small("dpt")
    weights = tmp_path / "relative.safetensors"
    inference.export(inference.DepthModel(module, variables, module.config), weights)

    def run(output):
        arguments = (f"--checkpoint={weights}", f"--root={kitti}", f"--output={output}")
        return scripts.run("tools/kitti_submission.py", *arguments)

    done = run(tmp_path / "kitti.zip")
    assert done.returncode == 2 and "predicts relative disparity" in done.stderr
    assert not (tmp_path / "kitti.zip").exists()
    done = run(tmp_path)
    assert done.returncode == 2 and f"--output={tmp_path} is a folder" in done.stderr


def test_the_tool_takes_saved_maps(kitti, tmp_path):
    (tmp_path / "saved").mkdir()
    for name in submission.NAMES:
        np.save(tmp_path / f"saved/{name}.npy", np.full((3, 4), 5.0))
    (tmp_path / "saved/0000000000_colour.png").write_bytes(png(np.zeros((3, 4, 3), np.uint8)))

    def run(predictions="saved", *more):
        arguments = (
            f"--predictions={tmp_path}/{predictions}",
            f"--root={kitti}",
            f"--output={tmp_path}/kitti.zip",
            *more,
        )
        return scripts.run("tools/kitti_submission.py", *arguments)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "500 depth maps" in done.stdout
    submission.check(tmp_path / "kitti.zip")
    (tmp_path / "kitti.zip").unlink()
    (tmp_path / "saved/part").mkdir()
    (tmp_path / "saved/0000000008.npy").rename(tmp_path / "saved/part/0000000008.npy")
    done = run("saved/**/*.npy")  # in several folders
    assert done.returncode == 0, done.stderr
    (tmp_path / "kitti.zip").unlink()
    done = run("saved", "--png_scale=0")
    assert done.returncode == 2 and "png_scale is 0" in done.stderr
    (tmp_path / "saved/part/0000000008.npy").unlink()
    done = run()
    assert done.returncode == 2 and "1 are missing: 0000000008" in done.stderr
    assert not (tmp_path / "kitti.zip").exists()
