import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from diffdepth_jax.data import io
from diffdepth_jax.errors import DataError, MissingFileError


def test_depth_png_values(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 256], [1000, 20000, 65535]], np.uint16)
    Image.fromarray(stored).save(tmp_path / "depth.png")
    kitti = io.read_depth_png(tmp_path / "depth.png")
    np.testing.assert_array_equal(kitti, stored / 256)
    assert kitti.dtype == np.float32
    np.testing.assert_allclose(io.read_depth_png(tmp_path / "depth.png", 1000.0), stored / 1000)


def test_counts_of_real_ground_truth(shared: Path) -> None:
    """The pixel counts of spec/protocols.md's table that depend only on the files."""
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
        with pytest.raises(DataError, match=re.escape(str(path)) + ".*16-bit depth map"):
            io.read_depth_png(path)


def test_depth_is_not_an_image(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 6), np.uint16)).save(tmp_path / "depth.png")
    with pytest.raises(ValueError, match=r"depth\.png.*8 bits"):
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
        with pytest.raises(ValueError, match=r"depth\.png.*download it again"):
            read(path)


def test_missing_file(tmp_path: Path) -> None:
    for read in (io.read_depth_png, io.read_image, lambda path: io.read_h5(path, ("rgb",))):
        with pytest.raises(MissingFileError, match=r"nothing\.png"):
            read(tmp_path / "nothing.png")


def test_h5_errors(tmp_path: Path) -> None:
    path = tmp_path / "frame.h5"
    with h5py.File(path, "w") as file:
        file["rgb"] = np.zeros(3)
    with pytest.raises(DataError, match=r"no dataset 'depth'.*\['rgb'\]"):
        io.read_h5(path, ("rgb", "depth"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"frame\.h5"):
        io.read_h5(path, ("rgb",))
    # h5py raises KeyError or RuntimeError if the internal tables are damaged.
    raised = 0
    for position in range(0, len(whole) - 64, 32):
        path.write_bytes(whole[:position] + b"\xff" * 32 + whole[position + 32 :])
        try:
            io.read_h5(path, ("rgb",))
        except ValueError as error:
            raised += str(path) in str(error)
    assert raised > 10


def test_check_sample() -> None:
    image, depth = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.float32)
    io.check_sample(image, depth, "a.png", "b.png")
    with pytest.raises(DataError, match=r"a\.png is 4x6, b\.png is 4x5"):
        io.check_sample(image, depth[:, :5], "a.png", "b.png")
    for wrong in (np.nan, np.inf, -1.0):
        bad = depth.copy()
        bad[1, 2] = wrong
        with pytest.raises(DataError, match=r"b\.png has 1.*NaN"):
            io.check_sample(image, bad, "a.png", "b.png")


def test_missing(tmp_path: Path) -> None:
    (tmp_path / "here.png").touch()
    absent = [tmp_path / "gone.png", tmp_path / "no_folder" / "here.png"]
    assert io.missing([absent[0], tmp_path / "here.png", absent[1]]) == absent


def write_exr(path: Path, channels: dict[str, np.ndarray]) -> None:
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def test_exr(tmp_path: Path) -> None:
    path, depth = tmp_path / "depth.exr", np.array([[0, 0.5, np.nan], [1, 2, 3.25]], np.float16)
    write_exr(path, {"RGB": np.stack([depth, depth + 1, depth + 2], -1)})
    np.testing.assert_array_equal(io.read_exr(path), depth)  # red
    assert io.read_exr(path).dtype == np.float32
    write_exr(path, {"A": np.ones((2, 3), np.float32), "Y": depth.astype(np.float32)})
    np.testing.assert_array_equal(io.read_exr(path), depth)
    data = path.read_bytes()
    for keep in (0, 20, len(data) - 10):
        path.write_bytes(data[:keep])
        with pytest.raises(ValueError, match=r"depth\.exr"):
            io.read_exr(path)
    with pytest.raises(MissingFileError, match=r"nothing\.exr"):
        io.read_exr(tmp_path / "nothing.exr")


def test_exr_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ImportError, match=r"depth\.exr needs .*diffdepth_jax\[exr\]"):
        io.read_exr(tmp_path / "depth.exr")


def test_npy(tmp_path: Path) -> None:
    path = tmp_path / "depth.npy"
    np.save(path, np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(io.read_npy(path), np.arange(6.0).reshape(2, 3))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"depth\.npy"):
        io.read_npy(path)
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"depth\.npy"):
        io.read_npy(path)
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(2))
    with pytest.raises(ValueError, match=r"depth\.npy cannot .* it is an archive"):
        io.read_npy(path)
    path.write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"depth\.npy cannot .* it is not a \.npy"):
        io.read_npy(path)
    np.save(path, np.arange(6.0))  # NumPy lets the tokenizer's error on this header through.
    path.write_bytes(path.read_bytes().replace(b"}", b"{"))
    with pytest.raises(ValueError, match=r"depth\.npy"):
        io.read_npy(path)


def test_depth_arrays_of_three_formats(tmp_path: Path) -> None:
    metres = np.array([[0.5, np.nan, 2.25], [np.inf, 0, 80]])
    for name, array in {"a": metres, "b": metres[:, :, None], "c": metres[None]}.items():
        np.save(tmp_path / f"{name}.npy", array)
        for scale in (None, 1000.0):  # for PNG; .npy holds metres
            depth = io.read_depth_array(tmp_path / f"{name}.npy", scale)
            np.testing.assert_array_equal(depth, metres)
            assert depth.dtype == np.float32
    write_exr(tmp_path / "a.exr", {"Z": metres.astype(np.float32)})
    np.testing.assert_array_equal(io.read_depth_array(tmp_path / "a.exr", 1000.0), metres)
    stored = np.array([[500, 0], [1250, 65535]], np.uint16)
    Image.fromarray(stored).save(tmp_path / "A.PNG")
    exact = io.read_depth_array(tmp_path / "A.PNG", 1000.0, np.float64)
    np.testing.assert_array_equal(exact, stored / 1000)
    assert exact.dtype == np.float64


def test_depth_arrays_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array in (np.zeros((2, 2, 3)), np.zeros(4), np.ones((2, 2), np.uint16)):
        np.save(path, array)
        with pytest.raises(DataError, match=rf"a\.npy.*{array.dtype}.*metres"):
            io.read_depth_array(path, 1000.0)
    Image.fromarray(np.ones((2, 2), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png.*depth_scale.*1000"):
        io.read_depth_array(tmp_path / "a.png", None)
    (tmp_path / "a.tif").touch()
    with pytest.raises(DataError, match=r"a\.tif.*\.npy"):
        io.read_depth_array(tmp_path / "a.tif", 1.0)
    for suffix in (*io.DEPTH_SUFFIXES, ".*"):
        with pytest.raises(MissingFileError, match=re.escape(f"nothing{suffix}")):
            io.read_depth_array(tmp_path / f"nothing{suffix}", None)


def test_mat(tmp_path: Path) -> None:
    path = tmp_path / "splits.mat"
    scipy.io.savemat(path, {"one": np.arange(3), "two": np.arange(4)})
    np.testing.assert_array_equal(io.read_mat(path, ("two",))[0], [[0, 1, 2, 3]])
    with pytest.raises(DataError, match=r"splits\.mat.*'three'.*'one', 'two'"):
        io.read_mat(path, ("one", "three"))
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"splits\.mat"):
        io.read_mat(path, ("one",))


def test_labels(tmp_path: Path) -> None:
    path, labels = tmp_path / "mask.png", np.array([[0, 1, 2], [3, 200, 255]], np.uint8)
    Image.fromarray(labels).save(path)
    np.testing.assert_array_equal(io.read_labels(path, (2, 3)), labels)
    with pytest.raises(DataError, match=r"mask\.png is 2x3.*3x2"):
        io.read_labels(path, (3, 2))
    with pytest.raises(DataError, match=r"mask\.png has class 255, .* 0 to 3"):
        io.read_categories(path, (2, 3))
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"mask\.png.*'RGB'"):
        io.read_labels(path, (2, 3))


def test_numbers(tmp_path: Path) -> None:
    path = tmp_path / "camera.txt"
    path.write_text("1 2\n3 4.5\n")
    np.testing.assert_array_equal(io.read_numbers(path, (2, 2)), [[1, 2], [3, 4.5]])
    for text in ("1 2 3", "1 2 3 nan", "1 2 3 x"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"camera\.txt: "):
            io.read_numbers(path, (2, 2))


def test_h5_entry(tmp_path: Path) -> None:
    path = tmp_path / "frames.h5"
    with h5py.File(path, "w") as file:
        file["depth"] = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(io.read_h5(path, ("depth",), entry=2)[0], [8, 9, 10, 11])
    with pytest.raises(DataError, match=r"frames\.h5 has no entry 3"):
        io.read_h5(path, ("depth",), entry=3)
