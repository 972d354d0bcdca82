import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data import io


def test_depth_png_values(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 256], [1000, 20000, 65535]], np.uint16)
    Image.fromarray(stored).save(tmp_path / "depth.png")
    kitti = io.read_depth_png(tmp_path / "depth.png")
    np.testing.assert_array_equal(kitti, stored / 256)
    assert kitti.dtype == np.float32
    np.testing.assert_allclose(io.read_depth_png(tmp_path / "depth.png", 1000.0), stored / 1000)


def test_counts_of_real_ground_truth(shared: Path) -> None:
    """The pixel counts of spec/protocols.md's table that depend on the files alone."""
    folder = shared / "data/kitti_depth/val/2011_09_26_drive_9999_sync/proj_depth/groundtruth"
    expected = {5: (90839, 90728), 50: (96131, 96063), 100: (85098, 85094)}
    for number, counts in expected.items():
        depth = io.read_depth_png(folder / f"image_02/{number:010d}.png")
        assert ((depth > 0).sum(), ((depth > 1e-3) & (depth < 80)).sum()) == counts
    assert depth.shape == (375, 1242)


def test_8_bit_depth_is_refused(tmp_path: Path) -> None:
    for number, array in enumerate([np.ones((4, 6), np.uint8), np.ones((4, 6, 3), np.uint8)]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(array).save(path)
        with pytest.raises(ValueError, match=re.escape(str(path)) + ".*16-bit depth map"):
            io.read_depth_png(path)


def test_depth_is_no_image(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 6), np.uint16)).save(tmp_path / "depth.png")
    with pytest.raises(ValueError, match=r"depth\.png has more than 8 bits"):
        io.read_image(tmp_path / "depth.png")


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((4, 6, 4), 7, np.uint8)).save(tmp_path / "alpha.png")
    for name in ("grey.png", "alpha.png"):
        image = io.read_image(tmp_path / name)
        assert image.shape == (4, 6, 3) and (image == 7).all()


@pytest.mark.parametrize("keep", [0, 20, 0.5])
def test_truncated_files(tmp_path: Path, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (32, 32), dtype=np.uint16)
    path = tmp_path / "depth.png"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    for read in (io.read_depth_png, io.read_image):
        with pytest.raises(ValueError, match=r"depth\.png cannot be read .*fetch it again"):
            read(path)


def test_missing_file(tmp_path: Path) -> None:
    for read in (io.read_depth_png, io.read_image, lambda path: io.read_h5(path, ("rgb",))):
        with pytest.raises(FileNotFoundError, match=r"nothing\.png does not exist"):
            read(tmp_path / "nothing.png")


def test_h5_errors(tmp_path: Path) -> None:
    path = tmp_path / "frame.h5"
    with h5py.File(path, "w") as file:
        file["rgb"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"no data set 'depth'; it holds \['rgb'\]"):
        io.read_h5(path, ("rgb", "depth"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"frame\.h5 cannot be read"):
        io.read_h5(path, ("rgb",))


def test_check_sample() -> None:
    image, depth = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.float32)
    io.check_sample(image, depth, "a.png", "b.png")
    with pytest.raises(ValueError, match=r"a\.png is 4x6, b\.png is 4x5"):
        io.check_sample(image, depth[:, :5], "a.png", "b.png")
    for wrong in (np.nan, np.inf, -1.0):
        bad = depth.copy()
        bad[1, 2] = wrong
        with pytest.raises(ValueError, match=r"b\.png has 1 depth values that are NaN"):
            io.check_sample(image, bad, "a.png", "b.png")


def test_missing(tmp_path: Path) -> None:
    (tmp_path / "here.png").touch()
    absent = [tmp_path / "gone.png", tmp_path / "no_folder" / "here.png"]
    assert io.missing([absent[0], tmp_path / "here.png", absent[1]]) == absent
