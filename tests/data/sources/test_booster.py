from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data.sources import booster
from diffdepth_jax.errors import DataError, MissingFileError

SIZE = (12, 16)
FX, BASELINE = 20.0, 0.0625  # pixels, metres

# As OpenCV's FileStorage writes it; the numbers are made up.
CALIBRATION = """<?xml version="1.0"?>
<opencv_storage>
<mtxL type_id="opencv-matrix"><rows>3</rows><cols>3</cols><dt>d</dt>
  <data>1. 0. 0. 0. 1. 0. 0. 0. 1.</data></mtxL>
<proj_matL type_id="opencv-matrix">
  <rows>3</rows>
  <cols>4</cols>
  <dt>d</dt>
  <data>
    20. 0. 7.25 0. 0. 2.1e+01 5.5 0.
    0. 0. 1. 0.</data></proj_matL>
<baselineLR>6.25e+01</baselineLR>
</opencv_storage>
"""


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Disparity with unknown pixels, and classes."""
    rng = np.random.default_rng(number)
    disparity = rng.uniform(1, 40, SIZE).astype(np.float32)
    disparity[0, :4] = [0, np.inf, np.nan, -1]
    return disparity, rng.integers(0, 4, SIZE, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two scenes in the official layout; the second has twelve images."""
    for number, (name, count) in enumerate({"Bathroom": 2, "Vodka": 12}.items()):
        folder = tmp_path / "train" / "balanced" / name
        (folder / "camera_00").mkdir(parents=True)
        (folder / "camera_02").mkdir()
        disparity, classes = scene(number)
        for index in range(count):
            image = np.full((*SIZE, 3), 10 * index, np.uint8)
            for camera in ("camera_00", "camera_02"):
                Image.fromarray(image).save(folder / camera / f"im{index}.png")
        np.save(folder / "disp_00.npy", disparity)
        Image.fromarray(classes).save(folder / "mask_cat.png")
        (folder / "calib_00-02.xml").write_text(CALIBRATION)
    return tmp_path


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
    """As the docstring says: every fourth pixel, disparity and fx divided by four."""
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
