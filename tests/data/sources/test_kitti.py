import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data.sources import kitti
from diffdepth_jax.data.splits import EIGEN_TEST, EIGEN_TEST_WITHOUT_DEPTH, EIGEN_TRAIN, zhou
from diffdepth_jax.errors import DataError, MissingFileError

DRIVE, OTHER = "2011_09_26_drive_0002_sync", "2011_09_28_drive_0001_sync"
LEFT, RIGHT = "image_02", "image_03"


def ids(frames: kitti.Source) -> list[str]:
    return [frames[index]["id"] for index in range(len(frames))]


def test_values_of_a_frame(
    write_kitti: Callable[..., Path], make_frame: Callable, check_contract: Callable
) -> None:
    root = write_kitti([(DRIVE, LEFT, 5), (DRIVE, RIGHT, 7)])
    check_contract(kitti.source("train", root))
    left, right = kitti.source("train", root)
    image, depth = make_frame(5, (24, 60))
    np.testing.assert_array_equal(left["image"], image)
    np.testing.assert_array_equal(left["depth"], depth / np.float32(256))
    np.testing.assert_array_equal(left["intrinsics"], [[720, 0, 600], [0, 710, 170], [0, 0, 1]])
    np.testing.assert_array_equal(right["intrinsics"], [[730, 0, 610], [0, 740, 180], [0, 0, 1]])
    assert left["id"] == "2011_09_26_drive_0002_sync_0000000005_image_02"
    assert (left["image"].dtype, left["depth"].dtype) == (np.uint8, np.float32)
    assert left["intrinsics"].dtype == np.float32
    assert left["condition"] == "day-clear"


def test_folders(write_kitti: Callable[..., Path], tmp_path: Path) -> None:
    depth_root = tmp_path / "elsewhere"
    frames = [(OTHER, LEFT, 9), (DRIVE, LEFT, 10), (DRIVE, LEFT, 5), (DRIVE, RIGHT, 5)]
    write_kitti(frames, "train", depth_root=depth_root)
    root = write_kitti([(DRIVE, LEFT, 99)], "val", depth_root=depth_root)
    options = dict(depth_root=str(depth_root))
    expected = [f"{d}_{n:010d}_{c}" for d, c, n in sorted(frames)]
    assert ids(kitti.source("train", root, **options)) == expected
    assert ids(kitti.source("train", root, cameras=(RIGHT,), **options)) == expected[2:3]
    assert ids(kitti.source("val", root, **options)) == [f"{DRIVE}_0000000099_image_02"]


def test_other_depth(write_kitti: Callable[..., Path]) -> None:
    root = write_kitti([(DRIVE, LEFT, 5)], depth_name="dense")
    assert len(kitti.source("train", root, depth="dense")) == 1
    with pytest.raises(DataError, match=r"no frames in split 'train' under .* depth 'groundtruth'"):
        kitti.source("train", root)


def test_converted_images(write_kitti: Callable[..., Path]) -> None:
    root = write_kitti([(DRIVE, LEFT, 5)], image_suffix=".jpg")
    assert kitti.source("train", root)[0]["image"].shape == (24, 60, 3)


def test_prepared_as_in_diffusiondepth(write_kitti: Callable[..., Path], tmp_path: Path) -> None:
    """Images and calibration copied into the drives with depth; no date folders."""
    root = write_kitti([(DRIVE, LEFT, 5)])
    prepared = root / "train" / DRIVE
    (root / DRIVE[:10] / DRIVE / LEFT).rename(prepared / LEFT)
    (root / DRIVE[:10] / "calib_cam_to_cam.txt").rename(prepared / "calib_cam_to_cam.txt")
    frames = kitti.source("train", root)
    assert frames[0]["intrinsics"][0, 0] == 720 and frames[0]["image"].shape == (24, 60, 3)


def test_rendered_scenes(write_kitti: Callable[..., Path], save_image: Callable) -> None:
    """Drives may give their condition and their frames' materials; KITTI's give neither."""
    root = write_kitti([(DRIVE, LEFT, 5), (DRIVE, LEFT, 6), (OTHER, LEFT, 5)])
    classes = np.arange(24 * 60, dtype=np.uint8).reshape(24, 60) % 4
    drive = root / DRIVE[:10] / DRIVE
    (drive / "condition.json").write_text('{"condition": "night", "noise": 0.1}')
    mask = drive / "category_02" / "data" / "0000000006.png"
    save_image(mask, classes)
    frames = kitti.source("train", root)
    assert [frame["condition"] for frame in frames] == ["night", "night", "day-clear"]
    assert ["categories" in frame for frame in frames] == [False, True, False]
    np.testing.assert_array_equal(frames[1]["categories"], classes)
    np.testing.assert_array_equal(frames[1]["tom_mask"], (classes == 2) | (classes == 3))
    save_image(mask, classes[:, :9])
    with pytest.raises(DataError, match=r"0000000006\.png is 24x9.*24x60"):
        frames[1]
    (drive / "condition.json").write_text("{}")
    with pytest.raises(DataError, match=r"condition\.json.*condition"):
        kitti.source("train", root)


def test_lists_in_all_formats(write_kitti: Callable[..., Path], tmp_path: Path) -> None:
    write_kitti([(DRIVE, LEFT, 69), (DRIVE, RIGHT, 69)], "val")
    root = write_kitti([(OTHER, LEFT, 5), (OTHER, LEFT, 6)], "train")
    stem, listed = f"{DRIVE}/image_02/data/0000000069", tmp_path / "list.txt"
    depth = f"{DRIVE}/proj_depth/groundtruth/image_02/0000000069.png"
    wanted = [f"{DRIVE}_0000000069_image_02"]
    for line in (
        f"2011_09_26/{stem}.png {depth} 721.5377",
        f"/2011_09_26/{stem}.jpg data_depth_annotated/val/{depth}",
        f"2011_09_26/{DRIVE} 69 l",
        f"2011_09_26/{DRIVE} 0000000069 l",
        f"2011_09_26/{DRIVE} 69 2\n\n",
    ):
        listed.write_text(line)
        assert ids(kitti.source(str(listed), root)) == wanted, line
    listed.write_text(f"2011_09_26/{DRIVE} 69 r")
    assert ids(kitti.source(str(listed), root)) == [f"{DRIVE}_0000000069_image_03"]
    listed.write_text(f"2011_09_28/{OTHER}")
    options = dict(cameras=(LEFT,))
    assert ids(kitti.source(str(listed), root, **options)) == [
        f"{OTHER}_000000000{number}_image_02" for number in (5, 6)
    ]


def test_listed_without_depth(write_kitti: Callable[..., Path], tmp_path: Path) -> None:
    root, listed = write_kitti([(DRIVE, LEFT, 69)], "val"), tmp_path / "list.txt"
    image = f"2011_09_26/{DRIVE}/image_02/data/00000000{{}}.png"
    listed.write_text(f"{image.format(54)} None 721.5\n{image.format(69)} x.png 721.5\n")
    frames = kitti.source(str(listed), root)
    assert (len(frames), frames.num_without_depth) == (1, 1)


def test_eigen_splits(write_kitti: Callable[..., Path]) -> None:
    test = [(drive, LEFT, number) for drive, numbers in EIGEN_TEST.items() for number in numbers]
    root = write_kitti(test, "train", size=(4, 6))
    write_kitti([(drive, LEFT, 5) for drive in EIGEN_TRAIN], "val", size=(4, 6))
    frames = kitti.source("eigen_test", root)
    assert (len(frames), frames.num_without_depth) == (652, 45)
    assert frames[0]["id"] == "2011_09_26_drive_0002_sync_0000000006_image_02"
    assert len(kitti.source("eigen_train", root, cameras=(LEFT,))) == 33
    with pytest.raises(MissingFileError, match="has no depth for image_03"):
        kitti.source("eigen_train", root)


def test_zhou_splits(write_kitti: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames without depth are left out and counted; a drive without depth is an error."""
    monkeypatch.setattr(
        "diffdepth_jax.data.splits.zhou",
        lambda part: [(DRIVE, LEFT, 1), (DRIVE, LEFT, 5), (DRIVE, RIGHT, 5)],
    )
    root = write_kitti([(DRIVE, LEFT, 5), (DRIVE, RIGHT, 6)])
    frames = kitti.source("zhou_train", root)
    assert ids(frames) == [f"{DRIVE}_0000000005_image_02"]
    assert frames.num_without_depth == 2
    monkeypatch.undo()
    with pytest.raises(MissingFileError, match=f"drive {zhou('val')[0][0]} has no depth"):
        kitti.source("zhou_val", root)


def write_selection(root: Path, make_frame: Callable) -> Path:
    folder = root / "depth_selection" / "val_selection_cropped"
    for camera, number in ((LEFT, 5), (RIGHT, 8)):
        image, depth = make_frame(number, (24, 60))
        arrays = {"image": image, "groundtruth_depth": depth}
        for kind, array in arrays.items():
            path = folder / kind / f"{DRIVE}_{kind}_{number:010d}_{camera}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        text = folder / "intrinsics" / f"{DRIVE}_image_{number:010d}_{camera}.txt"
        text.parent.mkdir(exist_ok=True)
        text.write_text("721.5 0.0 609.5 0.0 722.5 172.8 0.0 0.0 1.0 \n")
    return folder


def test_val_selection(tmp_path: Path, make_frame: Callable, check_contract: Callable) -> None:
    folder = write_selection(tmp_path, make_frame)
    frames = kitti.source("val_selection", tmp_path)
    check_contract(frames)
    assert ids(frames) == [f"{DRIVE}_0000000005_image_02", f"{DRIVE}_0000000008_image_03"]
    image, depth = make_frame(8, (24, 60))
    np.testing.assert_array_equal(frames[1]["image"], image)
    np.testing.assert_array_equal(frames[1]["depth"], depth / np.float32(256))
    expected = np.array([[721.5, 0, 609.5], [0, 722.5, 172.8], [0, 0, 1]], np.float32)
    np.testing.assert_array_equal(frames[1]["intrinsics"], expected)
    assert len(kitti.source("val_selection", tmp_path, cameras=(LEFT,))) == 1
    next((folder / "groundtruth_depth").glob("*_image_03.png")).unlink()
    with pytest.raises(MissingFileError, match=r"1 of 6 files .*depth_0000000008_image_03"):
        kitti.source("val_selection", tmp_path)
    late = kitti.source("val_selection", tmp_path, check_files=False)
    assert late[0]["id"] == f"{DRIVE}_0000000005_image_02"
    with pytest.raises(MissingFileError, match="groundtruth_depth_0000000008_image_03"):
        late[1]


def test_anonymous_test_images(
    tmp_path: Path, make_frame: Callable, check_contract: Callable
) -> None:
    folder = tmp_path / "depth_selection" / "test_depth_prediction_anonymous"
    for name in ("image", "intrinsics"):
        (folder / name).mkdir(parents=True)
    image, _ = make_frame(3, (24, 60))
    for number in range(2):
        Image.fromarray(image).save(folder / f"image/{number:010d}.png")
        (folder / f"intrinsics/{number:010d}.txt").write_text("7 0 3 0 8 4 0 0 1\n")
    frames = kitti.source("test_anonymous", tmp_path)
    check_contract(frames)
    assert ids(frames) == ["0000000000", "0000000001"]
    np.testing.assert_array_equal(frames[1]["image"], image)
    assert frames[0]["depth"].shape == (24, 60) and not frames[0]["depth"].any()
    np.testing.assert_array_equal(frames[0]["intrinsics"], [[7, 0, 3], [0, 8, 4], [0, 0, 1]])
    (folder / "intrinsics/0000000001.txt").write_text("7 0 3")
    with pytest.raises(DataError, match=r"0000000001\.txt: 9 finite numbers"):
        frames[1]
    (folder / "intrinsics/0000000001.txt").unlink()
    with pytest.raises(MissingFileError, match="1 of 4 files of split 'test_anonymous'"):
        kitti.source("test_anonymous", tmp_path)


def test_no_calibration_means_nan(
    write_kitti: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = write_kitti([(DRIVE, LEFT, 5), (DRIVE, LEFT, 6)], calibrated=False)
    with caplog.at_level(logging.WARNING):
        frames = kitti.source("train", root)
    assert [record.getMessage() for record in caplog.records] == [
        f"no calib_cam_to_cam.txt for 1 drives, starting with {DRIVE}: their intrinsics are NaN"
    ]
    assert np.isnan(frames[0]["intrinsics"]).all() and frames[0]["intrinsics"].shape == (3, 3)


@pytest.mark.parametrize("text", ["P_rect_02: 1 2 x\n", "P_rect_02: 1 2 3\n", "nothing\n"])
def test_broken_calibration(write_kitti: Callable[..., Path], text: str) -> None:
    root = write_kitti([(DRIVE, LEFT, 5)])
    path = root / "2011_09_26" / "calib_cam_to_cam.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(path))):
        kitti.source("train", root)


def test_missing_folders(write_kitti: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere .*set root"):
        kitti.source("train", tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"train .*unpack .*annotated"):
        kitti.source("train", tmp_path)
    with pytest.raises(MissingFileError, match=r"val_selection_cropped"):
        kitti.source("val_selection", tmp_path)
    with pytest.raises(MissingFileError, match=r"no\.txt"):
        kitti.source("no.txt", tmp_path)
    root = write_kitti([(DRIVE, LEFT, 5)])
    (root / "2011_09_26" / DRIVE / LEFT / "data").rename(root / "moved")
    with pytest.raises(MissingFileError, match=f"download the raw data of {DRIVE}"):
        kitti.source("train", root)


def test_missing_files_are_found_at_once(write_kitti: Callable[..., Path], tmp_path: Path) -> None:
    root = write_kitti([(DRIVE, LEFT, 5), (DRIVE, LEFT, 6)])
    (root / "2011_09_26" / DRIVE / LEFT / "data" / "0000000006.png").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 4 files .* starting with .*0000000006\.png"):
        kitti.source("train", root)
    listed = tmp_path / "list.txt"
    listed.write_text(f"2011_09_26/{DRIVE} 5 l\n2011_09_26/{DRIVE} 7 l\n")
    with pytest.raises(MissingFileError, match=r"2 of 4 files"):
        kitti.source(str(listed), root)


def test_bad_lists(write_kitti: Callable[..., Path], tmp_path: Path) -> None:
    root, listed = write_kitti([(DRIVE, LEFT, 5)]), tmp_path / "list.txt"
    for line in ("image 0", "a.png b.png 721.5", f"2011_09_26/{DRIVE} five l", f"{DRIVE}/x"):
        listed.write_text(f"2011_09_26/{DRIVE} 5 l\n{line}\n")
        with pytest.raises(DataError, match=r"list\.txt, line 2"):
            kitti.source(str(listed), root)
    listed.write_text(f"2011_09_26/{DRIVE} 5 l\n" * 2)
    with pytest.raises(DataError, match=f"frame {DRIVE}_0000000005_image_02 occurs twice"):
        kitti.source(str(listed), root)
    listed.write_text("\n")
    with pytest.raises(DataError, match="no frames"):
        kitti.source(str(listed), root)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"split is 'test'.*eigen_test"):
        kitti.Config(split="test")
    with pytest.raises(ValueError, match="cameras is empty"):
        kitti.Config(cameras=())


def test_sizes_must_agree(write_kitti: Callable[..., Path]) -> None:
    root = write_kitti([(DRIVE, LEFT, 5)])
    path = next((root / "2011_09_26").glob("**/0000000005.png"))
    Image.fromarray(np.zeros((24, 59, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"is 24x59, .*groundtruth.* is 24x60"):
        kitti.source("train", root)[0]


def test_real_annotated_frames(shared: Path) -> None:
    data = shared / "data"
    frames = kitti.source("val", data / "kitti_raw_metric3d", depth_root=str(data / "kitti_depth"))
    assert [name.split("_")[-3] for name in ids(frames)] == [f"{n:010d}" for n in (5, 50, 100)]
    assert [int((frames[i]["depth"] > 0).sum()) for i in range(3)] == [90839, 96131, 85098]
    assert frames[0]["image"].shape == (375, 1242, 3)
    # These frames come without calibration.
    assert np.isnan(frames[0]["intrinsics"]).all()


def test_real_calibration_and_scans(shared: Path) -> None:
    data = shared / "data"
    options = dict(depth_root=str(data / "kitti_depth_DERIVED"), depth="velodyne_raw")
    frames = kitti.source("train", data / "kitti_raw", **options)
    expected = np.array([[721.5377, 0, 609.5593], [0, 721.5377, 172.854], [0, 0, 1]], np.float32)
    assert len(frames) == 4
    for frame in frames:
        np.testing.assert_array_equal(frame["intrinsics"], expected)
    # The same scans as floating-point metres.
    npz = "2011_09_26/2011_09_26_drive_0023_sync/proj_depth/velodyne/image_02/0000000000.npz"
    scan = np.load(data / "kitti_raw" / npz)["velodyne_depth"]
    np.testing.assert_allclose(frames[0]["depth"], scan, atol=1 / 256)


def test_lists_in_published_formats(write_kitti: Callable[..., Path], tmp_path: Path) -> None:
    """Eigen's 697 frames as Marigold and monodepth2 list them, with and without the 45 that lack
    depth."""
    test = [(drive, LEFT, number) for drive, numbers in EIGEN_TEST.items() for number in numbers]
    others = [(d, LEFT, n) for d, numbers in EIGEN_TEST_WITHOUT_DEPTH.items() for n in numbers]
    root = write_kitti(test, "val", size=(4, 6), calibrated=False)

    def opened(form: str, frames: list[tuple[str, str, int]]) -> kitti.Source:
        lines = []
        for drive, camera, number in frames:
            depth = f"{drive}/proj_depth/groundtruth/{camera}/{number:010d}.png"
            measured = depth if (drive, camera, number) in test else "None"
            folder = f"{drive[:10]}/{drive}"
            lines.append(form.format(folder=folder, number=number, camera=camera, depth=measured))
        (tmp_path / "list.txt").write_text("\n".join(lines))
        return kitti.source(str(tmp_path / "list.txt"), root)

    marigold = opened("{folder}/{camera}/data/{number:010d}.png {depth} 721.5377", test + others)
    assert (len(marigold), marigold.num_without_depth) == (652, 45)
    assert ids(opened("{folder} {number} l", test)) == ids(marigold)
    with pytest.raises(MissingFileError, match="90 of 1394 files"):
        opened("{folder} {number:010d} l", test + others)
