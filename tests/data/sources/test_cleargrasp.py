from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.data.sources import cleargrasp
from diffdepth_jax.errors import DataError, MissingFileError
from tests.layouts import CLEARGRASP_CAMERA as CAMERA
from tests.layouts import cleargrasp_frame as frame

pytest.importorskip("OpenEXR")


@pytest.fixture
def root(cleargrasp_root: Path) -> Path:
    return cleargrasp_root


def test_splits(root: Path) -> None:
    def ids(split: str) -> list[str]:
        return [sample["id"] for sample in cleargrasp.source(split, root)]

    tests = ["real-test_d415_000000000", "real-test_d435_000000000"]
    assert ids("real-test") == tests
    assert ids("real-val") == ["real-val_d435_000000003"]
    assert ids("real") == ["real-val_d435_000000003", *tests]
    assert ids("synthetic-val") == ["cup-with-waves-val_000000000"]
    assert ids("synthetic-test") == ["tree-bath-bomb-test_000000001"]
    assert ids("synthetic-train") == ["cup-with-waves-train_000000002"]


def test_real_frame(root: Path) -> None:
    (sample,) = cleargrasp.source("real-val", root)
    image, depth, mask = frame(3)
    expected = np.where(np.isnan(depth), 0, depth)
    np.testing.assert_array_equal(sample["depth"], expected)
    assert sample["depth"].dtype == np.float32 and (sample["depth"] == 0).sum() == 5
    np.testing.assert_array_equal(sample["tom_mask"], mask == 255)
    np.testing.assert_array_equal(sample["intrinsics"], [[21.5, 0, 7.5], [0, 22, 4.5], [0, 0, 1]])
    np.testing.assert_allclose(sample["image"].astype(int), image, atol=3)


def test_synthetic_intrinsics(root: Path) -> None:
    """The authors' own figure: 370 pixels for both axes at 512x288."""
    (sample,) = cleargrasp.source("synthetic-val", root)
    fx, fy = sample["intrinsics"][0, 0], sample["intrinsics"][1, 1]
    np.testing.assert_allclose((fx * 512 / 16, fy * 288 / 10), (369.71, 369.72), atol=0.01)
    np.testing.assert_array_equal(sample["intrinsics"][:2, 2], [7.5, 4.5])


def test_bad_input(root: Path) -> None:
    folder = root / "real-val/d435"
    frames = cleargrasp.source("real-val", root)
    exr = folder / "000000003-opaque-depth-img.exr"
    whole = exr.read_bytes()
    exr.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"opaque-depth-img\.exr"):
        frames[0]
    exr.write_bytes(whole)
    camera = folder / "camera_intrinsics.yaml"
    for text, message in (
        (CAMERA.replace("fy:", "fz:"), "has no number 'fy'"),
        (CAMERA.replace("xres: 16", "xres: 640"), "is for images of 10x640, but these are 10x16"),
    ):
        camera.write_text(text)
        with pytest.raises(DataError, match=rf"camera_intrinsics\.yaml {message}"):
            frames[0]
    (folder / "000000003-mask.png").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 4 files .*000000003-mask\.png"):
        cleargrasp.source("real-val", root)
    with pytest.raises(DataError, match=r"no frames in split 'real'.*real-val"):
        cleargrasp.source("real", folder)


def test_real_bytes(shared: Path) -> None:
    """The published sample: invalid depth is NaN in one frame and 0 in the others."""
    frames = list(cleargrasp.source("real", shared / "data/cleargrasp"))
    assert [sample["id"][-3:] for sample in frames] == ["080", "123", "130", "153"]
    invalid = [int((sample["depth"] == 0).sum()) for sample in frames]
    assert invalid == [81078, 181741, 192657, 434347]
    np.testing.assert_allclose(
        [sample["depth"].max() for sample in frames], [0.94921875, 1.0498047, 1.0498047, 1.28125]
    )
    for sample in frames:
        assert sample["depth"].shape == (720, 1280)
        assert 0.005 < sample["tom_mask"].mean() < 0.2
        np.testing.assert_array_equal(sample["intrinsics"][0], [921, 0, 642])
    synthetic = list(cleargrasp.source("synthetic-val", shared / "data/cleargrasp"))
    assert [sample["depth"].min() > 0.2 for sample in synthetic] == [True] * 3
    assert synthetic[0]["depth"].shape == (1080, 1920)
