import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data.sources import nyu
from diffdepth_jax.errors import DataError, MissingFileError


def test_h5(write_nyu: Callable[..., Path], make_frame: Callable) -> None:
    write_nyu([("basement_0001a", 1), ("attic_0002", 3)], "train", "h5")
    root = write_nyu([("official", 5)], "val", "h5")
    frames = nyu.source("train", root)
    assert [frame["id"] for frame in frames] == ["attic_0002_00003", "basement_0001a_00001"]
    image, depth = make_frame(3, (24, 32))
    np.testing.assert_array_equal(frames[0]["image"], image)
    np.testing.assert_array_equal(frames[0]["depth"], depth.astype(np.float32) / 4096)
    assert (frames[0]["image"].dtype, frames[0]["depth"].dtype) == (np.uint8, np.float32)
    assert [frame["id"] for frame in nyu.source("test", root)] == ["official_00005"]


def test_linked_scenes_are_read(write_nyu: Callable[..., Path], tmp_path: Path) -> None:
    root = write_nyu([("basement_0001a", 1), ("attic_0002", 3)], "train", "h5")
    scene = root / "train/attic_0002"
    scene.rename(tmp_path / "elsewhere")
    scene.symlink_to(tmp_path / "elsewhere")
    frames = nyu.source("train", root)
    assert [frame["id"] for frame in frames] == ["attic_0002_00003", "basement_0001a_00001"]


def test_sync(write_nyu: Callable[..., Path], make_frame: Callable) -> None:
    write_nyu([("kitchen_0028b", 0), ("kitchen_0028b", 2)], "sync", "sync")
    root = write_nyu([("bathroom", 45)], "official_splits/test", "sync")
    frames = nyu.source("train", root, layout="sync")
    assert [frame["id"] for frame in frames] == [
        "kitchen_0028b_rgb_00000",
        "kitchen_0028b_rgb_00002",
    ]
    image, depth = make_frame(2, (24, 32))
    np.testing.assert_array_equal(frames[1]["image"], image)
    np.testing.assert_allclose(frames[1]["depth"], depth / 1000, rtol=1e-6)
    assert len(nyu.source("test", root, layout="sync")) == 1


def test_labelled(write_labelled_nyu: Callable[..., Path], make_frame: Callable) -> None:
    root = write_labelled_nyu(4, train=[1, 3], test=[2, 4])
    frames = nyu.source("test", root, layout="mat")
    assert [frame["id"] for frame in frames] == ["00001", "00003"]  # from 0, as BTS counts
    image, depth = make_frame(3, (24, 32))
    np.testing.assert_array_equal(frames[1]["image"], image)
    np.testing.assert_array_equal(frames[1]["depth"], depth.astype(np.float32) / 4096)
    assert (frames[1]["image"].dtype, frames[1]["depth"].dtype) == (np.uint8, np.float32)
    raw = nyu.source("train", root, layout="mat", mat_depth="rawDepths")
    _, depth = make_frame(2, (24, 32))
    assert len(raw) == 2
    np.testing.assert_array_equal(raw[1]["depth"], depth.astype(np.float32) / 8192)


def test_bad_labelled_files(write_labelled_nyu: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"starting with .*labeled\.mat: download"):
        nyu.source("test", tmp_path, layout="mat")
    root = write_labelled_nyu(2, train=[1], test=[9])
    with pytest.raises(DataError, match=r"labeled\.mat has no entry 8"):
        nyu.source("test", root, layout="mat")[0]
    write_labelled_nyu(2, train=[0], test=[1])
    with pytest.raises(DataError, match=r"splits\.mat: trainNdxs"):
        nyu.source("train", root, layout="mat")
    with pytest.raises(ValueError, match=r"split is '.*list\.txt'"):
        nyu.source(str(root / "list.txt"), root, layout="mat")
    data = (root / "nyu_depth_v2_labeled.mat").read_bytes()
    (root / "nyu_depth_v2_labeled.mat").write_bytes(data[:2000])
    with pytest.raises(DataError, match=r"labeled\.mat"):
        nyu.source("test", root, layout="mat")[0]
    (root / "splits.mat").write_bytes((root / "splits.mat").read_bytes()[:60])
    with pytest.raises(DataError, match=r"splits\.mat"):
        nyu.source("test", root, layout="mat")


def test_tfds(write_tfds_nyu: Callable[..., Path], make_frame: Callable) -> None:
    root = write_tfds_nyu([0, 7], "validation")
    frames = nyu.source("test", root, layout="tfds")
    assert [frame["id"] for frame in frames] == ["000000", "000001"]
    image, depth = make_frame(7, (24, 32))
    np.testing.assert_array_equal(frames[1]["image"], image)
    np.testing.assert_array_equal(frames[1]["depth"], (depth / 4096).astype(np.float16))
    assert frames[1]["depth"].dtype == np.float32
    again = pickle.loads(pickle.dumps(frames))  # as for worker processes
    np.testing.assert_array_equal(again[1]["depth"], frames[1]["depth"])
    version = root / "nyu_depth_v2/0.0.1"
    assert len(nyu.source("test", version, layout="tfds")) == 2
    assert "tensorflow" not in sys.modules


def test_bad_tfds_files(write_tfds_nyu: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"tfds build nyu_depth_v2"):
        nyu.source("test", tmp_path, layout="tfds")
    folder = write_tfds_nyu([0, 7], "validation") / "nyu_depth_v2/0.0.1"
    with pytest.raises(DataError, match=r"0\.0\.1.*'train'"):
        nyu.source("train", folder, layout="tfds")
    frames = nyu.source("test", folder, layout="tfds")
    next(folder.glob("*array_record*")).write_bytes(bytes(100))
    with pytest.raises(DataError, match=r"0\.0\.1, frame 0"):
        frames[0]
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"build it again with --file_format=array_record"):
        nyu.source("test", folder, layout="tfds")


def test_lists(write_nyu: Callable[..., Path], tmp_path: Path) -> None:
    write_nyu([("kitchen", 0)], "sync", "sync")
    root, listed = write_nyu([("attic", 1)], "train", "h5"), tmp_path / "list.txt"
    listed.write_text(
        "/sync/kitchen/rgb_00000.png /sync/kitchen/sync_depth_00000.png 518.8579\n"
        "train/attic/00001.h5\n"
    )
    frames = nyu.source(str(listed), root)
    assert [frame["id"] for frame in frames] == ["kitchen_rgb_00000", "attic_00001"]
    listed.write_text("sync/kitchen/rgb_00000.png\n")
    with pytest.raises(DataError, match=r"list\.txt, line 1"):
        nyu.source(str(listed), root)
    listed.write_text("train/attic/00001.h5\n" * 2)
    with pytest.raises(DataError, match=r"frame attic_00001 occurs twice in split .*list\.txt"):
        nyu.source(str(listed), root)
    listed.write_text("train/attic/00009.h5\n")
    with pytest.raises(MissingFileError, match=r"1 of 1 files of .*00009\.h5"):
        nyu.source(str(listed), root)
    listed.write_text("")
    with pytest.raises(DataError, match="no frames"):
        nyu.source(str(listed), root)


def test_intrinsics_belong_to_the_full_size(write_nyu: Callable[..., Path]) -> None:
    root = write_nyu([("attic", 1)], "train", "h5", (480, 640))
    np.testing.assert_array_equal(nyu.source("train", root)[0]["intrinsics"], nyu.INTRINSICS)
    root = write_nyu([("attic", 1)], "train", "h5", (24, 32))
    assert np.isnan(nyu.source("train", root)[0]["intrinsics"]).all()


def test_rendered_rooms(write_nyu: Callable[..., Path]) -> None:
    """They come with intrinsics, a condition, a map of materials and a validation split."""
    root = write_nyu([("room_0001", 0), ("room_0002", 3)], "official_splits/val", "sync")
    scene = root / "official_splits/val/room_0001"
    (scene / "intrinsics.txt").write_text("30 0 15.5\n0 31 11.5\n0 0 1\n")
    classes = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32) % 4
    Image.fromarray(classes).save(scene / "mask_cat_00000.png")
    (scene / "condition.json").write_text('{"condition": "mirror", "noise": 0.0}')
    one, other = nyu.source("val", root, layout="sync")
    assert (one["condition"], other["condition"]) == ("mirror", "indoor")
    np.testing.assert_array_equal(one["intrinsics"], [[30, 0, 15.5], [0, 31, 11.5], [0, 0, 1]])
    assert one["intrinsics"].dtype == np.float32 and np.isnan(other["intrinsics"]).all()
    np.testing.assert_array_equal(one["categories"], classes)
    np.testing.assert_array_equal(one["tom_mask"], (classes == 2) | (classes == 3))
    assert "categories" not in other and "tom_mask" not in other

    rooms = nyu.source("val", root, layout="sync")
    Image.fromarray(classes + 4).save(scene / "mask_cat_00000.png")
    with pytest.raises(DataError, match=r"mask_cat_00000\.png has class 7"):
        rooms[0]
    Image.fromarray(classes[:, :9]).save(scene / "mask_cat_00000.png")
    with pytest.raises(DataError, match=r"mask_cat_00000\.png is 24x9.*24x32"):
        rooms[0]
    (scene / "condition.json").write_text("[]")
    with pytest.raises(DataError, match=r"condition\.json.*condition"):
        rooms[0]
    (scene / "intrinsics.txt").write_text("30 0 15.5")
    with pytest.raises(DataError, match=r"room_0001/intrinsics\.txt: 9 finite numbers"):
        rooms[0]


def test_the_check_for_missing_files_can_be_skipped(write_nyu: Callable[..., Path]) -> None:
    root = write_nyu([("attic", 1), ("attic", 2)], "sync", "sync")
    (root / "sync/attic/sync_depth_00002.png").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 4 files of split 'train'"):
        nyu.source("train", root, layout="sync")
    frames = nyu.source("train", root, layout="sync", check_files=False)
    assert frames[0]["depth"].any()
    with pytest.raises(MissingFileError, match=r"sync_depth_00002\.png"):
        frames[1]


def test_bad_input(write_nyu: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        nyu.source("train", tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"sync .*.*layout"):
        nyu.source("train", tmp_path, layout="sync")
    with pytest.raises(ValueError, match="split is 'val'"):
        nyu.source("val", tmp_path)
    root = write_nyu([("attic", 1)], "train", "h5")
    path = root / "train/attic/00001.h5"
    with h5py.File(path, "a") as file:
        file["depth"][3, 4] = np.nan
    with pytest.raises(DataError, match=r"00001\.h5 has 1.*NaN"):
        nyu.source("train", root)[0]
    with h5py.File(path, "w") as file:
        file["rgb"], file["depth"] = np.zeros((24, 32, 3), np.uint8), np.zeros((24, 32))
    with pytest.raises(DataError, match=r"00001.*rgb.*\(24, 32, 3\)"):
        nyu.source("train", root)[0]


def test_real_frames(shared: Path) -> None:
    """Sizes, valid shares and means that spec/protocols.md gives for the NYU eigen crop."""
    frames = nyu.source("train", shared / "data/nyu_depth_v2", layout="sync")
    depths = [frame["depth"][45:471, 41:601] for frame in frames]
    assert [int((depth > 0).sum()) for depth in depths] == [221809, 225022, 202035]
    assert [int((frame["depth"] > 0).sum()) for frame in frames] == [225121, 230598, 205970]
    means = [depth[depth > 0].mean(dtype=np.float64) for depth in depths]
    np.testing.assert_allclose(means, [3.5762, 3.4836, 2.7923], atol=5e-5)
    assert frames[0]["image"].shape == (480, 640, 3)
    # A published copy of the intrinsics, from another demo of the data set.
    published = np.load(shared / "data/nyu_unidepth_demo/intrinsics.npy")
    np.testing.assert_allclose(frames[0]["intrinsics"], published, rtol=1e-6)
