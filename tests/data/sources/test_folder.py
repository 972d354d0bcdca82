import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data.sources import folder
from diffdepth_jax.errors import DataError, MissingFileError

SIZE = (6, 8)


def frame(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image, and depth in millimetres with unmeasured pixels."""
    rng = np.random.default_rng(number)
    depth = rng.integers(500, 9000, SIZE, dtype=np.uint16)
    depth[0, 2:6] = 0
    return rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), depth


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three frames in two rooms, with images and PNG depth in separate folders."""
    for number, name in enumerate(["room_1/0001", "room_1/0002", "room_2/0001"]):
        image, depth = frame(number)
        save(tmp_path / "image" / f"{name}.png", image)
        save(tmp_path / "depth" / f"{name}.png", depth)
    (tmp_path / "image" / ".DS_Store").touch()
    return tmp_path


def test_two_folders(root: Path) -> None:
    frames = folder.source("all", root, depth_scale=1000.0, condition="indoor")
    assert [sample["id"] for sample in frames] == ["room_1_0001", "room_1_0002", "room_2_0001"]
    for number, sample in enumerate(frames):
        image, depth = frame(number)
        np.testing.assert_array_equal(sample["image"], image)
        np.testing.assert_allclose(sample["depth"], depth / 1000, rtol=1e-6)
        assert sample["depth"].dtype == np.float32 and sample["condition"] == "indoor"
        assert np.isnan(sample["intrinsics"]).all()
    assert pickle.loads(pickle.dumps(frames))[2]["id"] == "room_2_0001"  # as for worker processes


def test_one_folder_and_float_depth(tmp_path: Path) -> None:
    for number in range(2):
        image, depth = frame(number)
        metres = np.where(depth > 0, depth / 1000, [[np.nan] * 4 + [np.inf] * 4])
        save(tmp_path / "kitchen" / f"rgb_{number}.png", image)
        save(tmp_path / "kitchen" / f"depth_{number}.npy", metres)
        np.savetxt(tmp_path / "kitchen" / f"camera_{number}.txt", np.diag([5.0 + number, 6, 1]))
    patterns = dict(images="*/rgb_*.png", depths="*/depth_*.npy")
    frames = folder.source("all", tmp_path, **patterns, intrinsics_file="*/camera_*.txt")
    assert [sample["id"] for sample in frames] == ["kitchen_0", "kitchen_1"]
    np.testing.assert_allclose(frames[1]["depth"], frame(1)[1] / 1000, rtol=1e-6)
    np.testing.assert_array_equal(frames[1]["intrinsics"], np.diag([6, 6, 1]))
    scaled = folder.source("all", tmp_path, **patterns, depth_scale=1000.0)  # applies to PNG only
    np.testing.assert_array_equal(scaled[0]["depth"], frames[0]["depth"])


def test_exr_depth(tmp_path: Path) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    depth = np.full(SIZE, 2.5, np.float16)
    depth[0, 0] = np.nan
    save(tmp_path / "image/a.png", frame(0)[0])
    (tmp_path / "depth").mkdir()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"Z": depth}) as file:
        file.write(str(tmp_path / "depth/a.exr"))
    (sample,) = folder.source("all", tmp_path)
    assert sample["depth"][0, 0] == 0 and (sample["depth"] == 2.5).sum() == 47


def test_images_alone(root: Path) -> None:
    frames = folder.source("all", root, depths=None, intrinsics=(7.0, 8.0, 3.5, 2.5))
    assert len(frames) == 3 and not frames[0]["depth"].any()
    assert frames[0]["depth"].shape == SIZE
    np.testing.assert_array_equal(frames[0]["intrinsics"], [[7, 0, 3.5], [0, 8, 2.5], [0, 0, 1]])


def test_split_list(root: Path) -> None:
    listed = root / "test.txt"
    listed.write_text("image/room_2/0001.png\n\nimage/room_1/0001.png\n")
    frames = folder.source(str(listed), root, depth_scale=1000.0)
    assert [sample["id"] for sample in frames] == ["room_2_0001", "room_1_0001"]
    listed.write_text("image/room_2/0009.png\n")
    with pytest.raises(MissingFileError, match=r"test\.txt, line 1: .*0009\.png"):
        folder.source(str(listed), root)
    listed.write_text("image/room_2/0001.png\n" * 2)
    with pytest.raises(DataError, match=r"test\.txt, line 2: .* occurs twice"):
        folder.source(str(listed), root)


def test_intrinsics_file(root: Path) -> None:
    np.save(root / "camera.npy", np.diag([7.0, 8, 1]))
    frames = folder.source("all", root, depth_scale=1e3, intrinsics_file="camera.npy")
    np.testing.assert_array_equal(frames[2]["intrinsics"], np.diag([7, 8, 1]))
    np.save(root / "camera.npy", np.zeros((3, 4)))
    with pytest.raises(DataError, match=r"camera\.npy must hold finite floats \[3 3\]"):
        frames[2]


def test_bad_files(root: Path) -> None:
    with pytest.raises(DataError, match=r"0001\.png.*depth_scale"):
        folder.source("all", root)[0]
    frames = folder.source("all", root, depth_scale=1e3)
    save(root / "depth/room_1/0001.png", frame(0)[1][:, :5])
    with pytest.raises(DataError, match=r"image/room_1/0001\.png is 6x8, .* is 6x5"):
        frames[0]
    (root / "depth/room_1/0001.png").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 6 files .*depth/room_1/0001\..*depths="):
        folder.source("all", root, depth_scale=1e3)
    later = folder.source("all", root, depth_scale=1e3, check_files=False)
    assert later[1]["depth"].any()
    save(root / "image/room_1/0002.jpg", frame(0)[0])
    with pytest.raises(DataError, match=r"0002\.jpg and .*0002\.png both belong to frame"):
        folder.source("all", root)
    with pytest.raises(DataError, match=r"no frames in split 'all' .* are images='\*\.webp'"):
        folder.source("all", root, images="*.webp", depths=None)


def test_a_wildcard_suffix_matches_only_images_and_depth_maps(root: Path) -> None:
    for name in ("image/room_1/Thumbs.db", "image/room_1/0001.txt", "depth/room_1/0001.json"):
        (root / name).write_text("not a picture")
    frames = folder.source("all", root, depth_scale=1000.0)
    assert [sample["id"] for sample in frames] == ["room_1_0001", "room_1_0002", "room_2_0001"]
    with pytest.raises(DataError, match=r"0001\.txt"):  # an explicit suffix is obeyed
        folder.source("all", root, images="image/**/*.txt", depths=None)[0]


def test_brackets_in_names_are_not_patterns(tmp_path: Path) -> None:
    for number, name in enumerate(["set [d]/a", "set [d]/b?"]):
        image, depth = frame(number)
        save(tmp_path / "rgb [left]" / f"{name}.png", image)
        save(tmp_path / "depth" / f"{name}.png", depth)
    for place in (tmp_path, tmp_path / "rgb [left]" / "set [d]"):
        inside = place != tmp_path
        patterns = dict(images="*.*" if inside else "rgb [left]/**/*.*")
        patterns["depths"] = None if inside else "depth/**/*.*"
        assert len(folder.source("all", place, depth_scale=1e3, **patterns)) == 2
    one = folder.source("all", tmp_path, images="rgb [left]/set [d]/*?.png", depths=None)
    assert [sample["id"] for sample in one] == ["b"]


def test_linked_folders_are_read(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for kind in ("image", "depth"):
        (root / kind / "room_2").rename(elsewhere / kind)
        (root / kind / "room_2").symlink_to(elsewhere / kind)
    frames = folder.source("all", root, depth_scale=1000.0)
    assert [sample["id"] for sample in frames] == ["room_1_0001", "room_1_0002", "room_2_0001"]
    np.testing.assert_array_equal(frames[2]["image"], frame(2)[0])


def test_unusable_names_are_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "image/loop.png").symlink_to("loop.png")
    (root / "image/gone.png").symlink_to("nowhere.png")
    not_utf8 = os.fsencode(root / "image") + b"/\xff.png"
    with open(not_utf8, "wb"):
        pass
    frames = folder.source("all", root, depth_scale=1000.0)
    assert [sample["id"] for sample in frames] == ["room_1_0001", "room_1_0002", "room_2_0001"]
    (message,) = caplog.messages
    assert "3 files" in message and "gone.png" in message
    message.encode()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(images="a.png"), "images is 'a.png'; it must contain a star"),
        (dict(depths="depth/0.png"), "depths is 'depth/0.png'; it must have the same stars"),
        (dict(depths="depth/*.*"), "depths is 'depth/.*' and images .* the same stars"),
        (dict(intrinsics_file="*.txt"), "intrinsics_file is .* the same stars"),
        (dict(depth_scale=0.0), "depth_scale is 0.0"),
        (dict(intrinsics=(0.0, 1.0, 1.0, 1.0)), "intrinsics is .* must be positive"),
        (dict(intrinsics=(1.0,) * 4, intrinsics_file="a.txt"), "not both"),
    ],
)
def test_values_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folder.Config(**options)


# Folder, patterns, stored units per metre -> pixels with depth, and their median in metres.
REAL = {
    "open3d_rgbd_redwood": (
        ("color/*.jpg", "depth/*.png", 1000.0),
        ([267129, 267728, 268183, 268620, 269051], 1.861),
    ),
    "tum_rgbd": (("*_color.png", "*_depth.png", 5000.0), ([248250], 2.415)),
    "nyu_mmseg_mini": (("images/*.jpg", "annotations/*.png", 1000.0), ([12712], 2.799)),
}


@pytest.mark.parametrize("name", REAL)
def test_real_frames(shared: Path, name: str) -> None:
    """Frames of three public data sets, paired by name; counted in the files with Pillow only."""
    (images, depths, scale), (counts, median) = REAL[name]
    options = dict(images=images, depths=depths, depth_scale=scale)
    frames = folder.source("all", shared / "data" / name, **options)
    assert [int((sample["depth"] > 0).sum()) for sample in frames] == counts
    depth = frames[0]["depth"]
    np.testing.assert_allclose(np.median(depth[depth > 0]), median, atol=1e-6)


def test_real_frame_with_intrinsics(shared: Path) -> None:
    options = dict(images="nyu_unidepth*/rgb.png", depths="nyu_unidepth*/depth.png")
    options |= dict(intrinsics_file="nyu_unidepth*/intrinsics.npy", depth_scale=1000.0)
    (sample,) = folder.source("all", shared / "data", **options)
    assert (sample["depth"] > 0).sum() == 209294 and sample["depth"].max() == 10
    np.testing.assert_allclose(sample["intrinsics"][0], [518.8579, 0, 325.58245], rtol=1e-6)
