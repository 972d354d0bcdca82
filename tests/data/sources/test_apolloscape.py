import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.data.sources import apolloscape
from diffdepth_jax.errors import DataError, MissingFileError

SIZE = (20, 44)
NAMES = ("171206_034559609_Camera_5", "171206_034625454_Camera_5")


@pytest.fixture
def root(tmp_path: Path, make_frame: Callable, save_image: Callable) -> Path:
    for number, name in enumerate(NAMES):
        part = tmp_path / f"stereo_train_00{number + 1}"
        image, disparity = make_frame(number, SIZE)
        disparity[0, :4] = 65535
        save_image(part / f"camera_5/{name}.jpg", image)
        save_image(part / f"camera_6/{name[:-1]}6.jpg", image)
        save_image(part / f"disparity/{name}.png", disparity)
        cars = np.zeros(SIZE, np.uint16)
        cars[:, :22] = 65535
        save_image(part / f"fg_mask/{name}.png", cars)
        save_image(part / f"bg_mask/{name}.png", 65535 - cars)
    save_image(tmp_path / "test/camera_5/171206_1_Camera_5.jpg", make_frame(5, SIZE)[0])
    return tmp_path


def test_values(root: Path, make_frame: Callable, check_contract: Callable) -> None:
    images = apolloscape.source("train", root)
    check_contract(images)
    check_contract(apolloscape.source("train", root, depth="foreground"))
    assert [frame["id"] for frame in images] == list(NAMES)
    assert not images[0]["depth"].any() and np.isnan(images[0]["intrinsics"]).all()
    depth = apolloscape.source("train", root, depth="disparity")[1]["depth"]
    stored = make_frame(1, SIZE)[1].astype(float)
    stored[0, :4] = 0
    expected = np.divide(828.473292 * 200, stored, where=stored > 0, out=np.zeros(SIZE))
    np.testing.assert_allclose(depth, expected, rtol=1e-6)
    near, far = (
        apolloscape.source("train", root, depth=name, disparity_scale=1.0)[1]["depth"]
        for name in ("foreground", "background")
    )
    assert not near[:, 22:].any() and not far[:, :22].any()
    np.testing.assert_allclose(near + far, expected / 200, rtol=1e-6)
    (test,) = apolloscape.source("test", root)
    assert test["id"] == "171206_1_Camera_5" and not test["depth"].any()


def test_intrinsics_belong_to_the_rectified_size(tmp_path: Path, save_image: Callable) -> None:
    image = np.zeros((960, 3130, 3), np.uint8)
    save_image(tmp_path / "stereo_train_001/camera_5/a.jpg", image)
    (frame,) = apolloscape.source("train", tmp_path)
    np.testing.assert_array_equal(frame["intrinsics"], apolloscape.INTRINSICS)


def test_bad_input(root: Path, save_image: Callable) -> None:
    mask = root / f"stereo_train_001/fg_mask/{NAMES[0]}.png"
    save_image(mask, np.zeros((20, 43), np.uint16))
    with pytest.raises(DataError, match=r"fg_mask/.* is \(20, 43\), but .*disparity.* \(20, 44\)"):
        apolloscape.source("train", root, depth="foreground")[0]
    mask.unlink()
    with pytest.raises(MissingFileError, match=r"1 of 6 files of split 'train' .*fg_mask"):
        apolloscape.source("train", root, depth="foreground")
    with pytest.raises(ValueError, match="depth is 'disparity'"):
        apolloscape.Config(split="test", depth="disparity")
    with pytest.raises(ValueError, match="depth is 'lidar'"):
        apolloscape.Config(depth="lidar")
    with pytest.raises(ValueError, match="disparity_scale is 0"):
        apolloscape.Config(disparity_scale=0.0)
    with pytest.raises(DataError, match=r"no frames in split 'train' .*unpack the archives"):
        apolloscape.source("train", root / "test")


def test_real_disparity(shared: Path, tmp_path: Path, save_image: Callable) -> None:
    """The repository's evaluation sample, 2710x3384 with integer disparities; a blank image."""
    real, part = shared / "data/apolloscape_stereo", tmp_path / "stereo_train_001"
    for folder in ("disparity", "fg_mask", "bg_mask"):
        part.mkdir(exist_ok=True)
        os.symlink(real / folder, part / folder)
    name = "171206_034559609_Camera_5"
    save_image(part / f"camera_5/{name}.jpg", np.zeros((2710, 3384, 3), np.uint8))
    options = dict(disparity_scale=1.0)
    depth = apolloscape.source("train", tmp_path, depth="disparity", **options)[0]["depth"]
    measured = depth > 0
    # 53.37% of the pixels have disparities, of 2 to 163 pixels; each is in one of the masks.
    np.testing.assert_allclose(depth.max(), 2301.3147 * 0.36 / 2, rtol=1e-6)
    assert measured.mean() == pytest.approx(0.533704, abs=1e-6)
    cars, road = (
        apolloscape.source("train", tmp_path, depth=name, **options)[0]["depth"] > 0
        for name in ("foreground", "background")
    )
    assert cars.mean() == pytest.approx(0.129860, abs=1e-6)
    np.testing.assert_array_equal(measured, cars ^ road)
