from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.data.sources import booster
from diffdepth_jax.errors import DataError, MissingFileError
from tests.layouts import BOOSTER_BASELINE as BASELINE
from tests.layouts import BOOSTER_CALIBRATION as CALIBRATION
from tests.layouts import BOOSTER_FX as FX
from tests.layouts import BOOSTER_SIZE as SIZE
from tests.layouts import booster_scene as scene


@pytest.fixture
def root(booster_root: Path) -> Path:
    return booster_root


def test_frames(root: Path) -> None:
    frames = booster.source("train", root)
    names = [frame["id"] for frame in frames]
    assert names == [f"Bathroom_im{n}" for n in range(2)] + [f"Vodka_im{n}" for n in range(12)]
    sample = frames[2 + 11]
    stored, classes = scene(1)
    assert (sample["image"] == 110).all()
    known = np.isfinite(stored) & (stored > 0)
    assert known.sum() == 12 * 16 - 4
    np.testing.assert_array_equal(sample["disparity"], np.where(known, stored, 0))
    expected = BASELINE * FX / stored[known].astype(np.float64)
    np.testing.assert_allclose(sample["depth"][known], expected, rtol=1e-6)
    assert (sample["depth"][~known] == 0).all()
    assert (sample["depth"].dtype, sample["disparity"].dtype) == (np.float32, np.float32)
    assert sample["baseline"] == BASELINE
    np.testing.assert_array_equal(sample["intrinsics"], [[FX, 0, 7.25], [0, 21, 5.5], [0, 0, 1]])
    np.testing.assert_array_equal(sample["categories"], classes)
    np.testing.assert_array_equal(sample["tom_mask"], (classes == 2) | (classes == 3))


def test_the_published_quarter_keeps_depth(root: Path) -> None:
    """As documented: every fourth pixel, disparity and fx divided by four."""
    sample = booster.source("train", root)[0]
    disparity, fx = sample["disparity"][::4, ::4] / 4, sample["intrinsics"][0, 0] / 4
    known = disparity > 0
    depth = sample["baseline"] * fx / disparity[known]
    np.testing.assert_allclose(depth, sample["depth"][::4, ::4][known], rtol=1e-6)


def test_root_may_be_the_folder_of_scenes(root: Path) -> None:
    assert len(booster.source("train", root / "train/balanced")) == 14


def test_published_list(root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "train_stereo.txt"
    listed.write_text("Vodka/camera_00/im10.png Vodka/disp_00.npy Vodka/calib_00-02.xml\n")
    frames = booster.source(str(listed), root)
    assert [frame["id"] for frame in frames] == ["Vodka_im10"]
    np.testing.assert_array_equal(frames[0]["categories"], scene(1)[1])
    listed.write_text("Vodka/im10.png Vodka/disp_00.npy Vodka/calib_00-02.xml\n")
    with pytest.raises(DataError, match=r"train_stereo\.txt, line 1: .* is not 'SCENE"):
        booster.source(str(listed), root)


def test_bad_input(root: Path) -> None:
    folder = root / "train/balanced/Bathroom"
    frames = booster.source("train", root)
    np.save(folder / "disp_00.npy", scene(0)[0][:, :9])
    with pytest.raises(DataError, match=r"im0\.png is 12x16, .*disp_00\.npy is 12x9"):
        frames[0]
    np.save(folder / "disp_00.npy", np.zeros(SIZE, np.uint16))
    with pytest.raises(DataError, match=r"disp_00\.npy.*float"):
        frames[0]
    np.save(folder / "disp_00.npy", scene(0)[0])
    calibration = folder / "calib_00-02.xml"
    for text, message in (
        (CALIBRATION[:300], "cannot be read"),
        (CALIBRATION.replace("baselineLR", "baseline"), "baselineLR: 1 finite numbers"),
        (CALIBRATION.replace("proj_matL", "proj_matR"), "proj_matL: 12 finite numbers"),
        (CALIBRATION.replace("6.25e+01", "0"), "baselineLR 0 and .* must be positive"),
    ):
        calibration.write_text(text)
        with pytest.raises(DataError, match=rf"calib_00-02\.xml.*{message}"):
            frames[0]
    (folder / "mask_cat.png").unlink()
    calibration.unlink()
    with pytest.raises(MissingFileError, match=r"3 of \d+ files .*calib_00-02\.xml"):
        booster.source("train", root)
    later = booster.source("train", root, check_files=False)
    with pytest.raises(MissingFileError, match=r"calib_00-02\.xml"):
        later[0]
    assert later[2]["depth"].any()


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no frames in split 'train'.*booster_gt\.zip"):
        booster.source("train", tmp_path)
