"""Official layouts: files read back equal what was written, directly and through the sources."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data import io
from diffdepth_jax.data.sources import kitti, nyu
from diffdepth_jax.scenes import layouts, writers

SIZE = (16, 48)


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    dense = rng.uniform(1, 60, SIZE)
    dense[:3] = 0
    dense[3, :2] = 300.0, 255.9
    return writers.Picture(
        image=rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        dense=dense,
        sparse=np.where(rng.random(SIZE) < 0.1, dense, 0),
        scan=None,
        category=None,
        intrinsics=layouts.pinhole(SIZE, 0.6),
        weather={"extinction": 0.0},
    )


def files(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def kitti_frame(root):
    return writers.KittiFrame(root, "val", "2000_01_02", 7)


DRIVE = "2000_01_02_drive_0007_sync"


def test_kitti_paths(picture, tmp_path):
    kitti_frame(tmp_path).write("clear", picture)
    clear = {
        "raw/2000_01_02/calib_cam_to_cam.txt",
        f"raw/2000_01_02/{DRIVE}/condition.json",
        f"raw/2000_01_02/{DRIVE}/image_02/data/0000000005.png",
        f"depth/val/{DRIVE}/proj_depth/groundtruth/image_02/0000000005.png",
        f"depth/val/{DRIVE}/proj_depth/dense/image_02/0000000005.png",
    }
    assert files(tmp_path) == clear
    full = replace(
        picture, scan=picture.sparse, category=np.full(SIZE, 3, np.uint8), weather={"noise": 0.5}
    )
    kitti_frame(tmp_path).write("night", full)
    assert files(tmp_path) == clear | {
        "night/raw/2000_01_02/calib_cam_to_cam.txt",
        f"night/raw/2000_01_02/{DRIVE}/condition.json",
        f"night/raw/2000_01_02/{DRIVE}/image_02/data/0000000005.png",
        f"night/depth/val/{DRIVE}/proj_depth/velodyne_raw/image_02/0000000005.png",
        f"night/raw/2000_01_02/{DRIVE}/category_02/data/0000000005.png",
    }
    note = tmp_path / "night" / "raw" / "2000_01_02" / DRIVE / "condition.json"
    assert json.loads(note.read_text()) == {"condition": "night", "noise": 0.5}


def test_files_hold_what_was_written(picture, tmp_path):
    frame = kitti_frame(tmp_path)
    frame.write("clear", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(frame.image())), picture.image)
    for kind, depth in (("dense", picture.dense), ("groundtruth", picture.sparse)):
        assert np.asarray(Image.open(frame.depth(kind))).dtype == np.uint16
        metres = io.read_depth_png(frame.depth(kind), frame.SCALE)
        expected = np.where(depth <= 65535 / 256, depth, 0)
        assert np.abs(metres - expected).max() <= 0.5 / 256
        assert ((metres > 0) == (expected > 0)).all()


@pytest.mark.parametrize("condition", ["clear", "fog"])
@pytest.mark.parametrize("kind", ["dense", "groundtruth"])
def test_the_kitti_source_reads_it(picture, tmp_path, condition, kind):
    masks = {"clear": np.ones(SIZE, np.uint8), "fog": np.full(SIZE, 3, np.uint8)}
    dark = replace(picture, image=picture.image // 2, category=masks["clear"])
    kitti_frame(tmp_path).write("clear", dark)
    kitti_frame(tmp_path).write(condition, replace(picture, category=masks[condition]))
    root = tmp_path if condition == "clear" else tmp_path / condition
    source = kitti.source("val", root / "raw", depth_root=str(tmp_path / "depth"), depth=kind)
    assert len(source) == 1
    sample = source[0]
    np.testing.assert_array_equal(sample["image"], picture.image)
    assert sample["condition"] == condition
    np.testing.assert_array_equal(sample["categories"], masks[condition])
    expected = {"dense": picture.dense, "groundtruth": picture.sparse}[kind]
    expected = np.where(expected <= 65535 / 256, expected, 0)
    np.testing.assert_allclose(sample["depth"], expected, atol=0.5 / 256 + 1e-6)
    np.testing.assert_allclose(sample["intrinsics"], picture.intrinsics, rtol=1e-5)


def test_the_kitti_source_reads_the_test_split_from_its_list(picture, tmp_path):
    frames = [writers.KittiFrame(tmp_path, "test", "2000_01_02", drive) for drive in (8, 9)]
    for frame in frames:
        frame.write("clear", picture)
        frame.write("fog", picture)
    writers.write_kitti_list(tmp_path, "test", frames)
    for root in (tmp_path, tmp_path / "fog"):
        listed = str(tmp_path / "test.txt")
        source = kitti.source(listed, root / "raw", depth_root=str(tmp_path / "depth" / "test"))
        assert {sample["condition"] for sample in source} == {
            "fog" if root.name == "fog" else "clear"
        }
        assert [sample["id"][16:21] for sample in source] == ["_0008", "_0009"]
        np.testing.assert_array_equal(source[1]["depth"] > 0, picture.sparse > 0)


def test_jpeg_pictures(picture, tmp_path):
    """Only the picture's file differs; it is close to the original, and the sources read it."""
    height, width = SIZE
    smooth = np.linspace(0, 255, height * width).reshape(height, width, 1) * [1, 0.5, 0]
    smooth[:, ::2, 2] = 160  # a fine colour pattern, which subsampling would blur
    picture = replace(picture, image=smooth.astype(np.uint8), category=np.ones(SIZE, np.uint8))
    written = {}
    for form in ("png", "jpg"):
        root = tmp_path / form
        drive = writers.KittiFrame(root, "train", "2000_01_02", 7, image_format=form)
        room = writers.NyuFrame(root, "val", "room_0001", image_format=form)
        drive.write("night", picture)
        room.write("night", picture)
        writers.write_list(root, "night", "val", [room])
        pictures = {str(frame.image("night").relative_to(root)) for frame in (drive, room)}
        written[form] = files(root) - pictures
        assert all(name.endswith(form) for name in pictures)
        listed = str(root / "night" / "val.txt")
        for source in (
            kitti.source("train", root / "night" / "raw", depth_root=str(root / "depth")),
            nyu.source(listed, root / "night", layout="sync"),
            nyu.source("val", root / "night", layout="sync"),
        ):
            (sample,) = source
            error = np.abs(sample["image"].astype(int) - picture.image)
            assert (error.max() == 0) == (form == "png") and error.mean() < 3
    assert written["png"] == written["jpg"]
    with Image.open(drive.image("night")) as file:
        assert file.format == "JPEG" and all(layer[1:3] == (1, 1) for layer in file.layer)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_nyu_source_reads_it(picture, tmp_path, split):
    """Each condition is a complete root; validation frames are read from their list."""
    frame = writers.NyuFrame(tmp_path, split, "room_0001")
    frame.write("mirror", replace(picture, category=np.full(SIZE, 2, np.uint8)))
    writers.write_list(tmp_path, "mirror", split, [frame])
    root = tmp_path / "mirror"
    by_list = nyu.source(str(root / f"{split}.txt"), root, layout="sync")
    sources = [by_list]
    if split != "val":
        sources.append(nyu.source(split, root, layout="sync"))
    for source in sources:
        assert len(source) == 1
        sample = source[0]
        np.testing.assert_array_equal(sample["image"], picture.image)
        expected = np.where(picture.dense <= 65.535, picture.dense, 0)
        np.testing.assert_allclose(sample["depth"], expected, atol=0.5e-3 + 1e-6)
        np.testing.assert_allclose(sample["intrinsics"], picture.intrinsics, rtol=1e-6)
    mask = frame.image("mirror").with_name("mask_cat_00000.png")
    assert (np.asarray(Image.open(mask)) == 2).all()
