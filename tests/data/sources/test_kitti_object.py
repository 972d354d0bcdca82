import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data.sources import kitti_object
from diffdepth_jax.errors import DataError, MissingFileError

# Camera 2 lies 6 cm left of the reference camera and the lidar 1 m behind and 2 m above it; lidar
# axes are x forward, y left, z up.
CALIBRATION = """\
P0: 20 0 15 0 0 20 10 0 0 0 1 0
P2: 20 0 15 1.2 0 20 10 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 -2 1 0 0 -1
"""


def write(root: Path, make_frame: Callable, points: np.ndarray, part: str = "training") -> None:
    for name in ("image_2", "velodyne", "calib"):
        (root / part / name).mkdir(parents=True)
    Image.fromarray(make_frame(0, (20, 32))[0]).save(root / part / "image_2/000000.png")
    points.astype(np.float32).tofile(root / part / "velodyne/000000.bin")
    (root / part / "calib/000000.txt").write_text(CALIBRATION)


def test_points_are_projected(
    tmp_path: Path, make_frame: Callable, check_contract: Callable
) -> None:
    points = np.array([[11, 0, -2, 0.5], [6, 0, -2, 0.1], [21, 4, -3, 0.9], [-9, 0, 0, 0]])
    write(tmp_path, make_frame, points)
    write(tmp_path, make_frame, points[:1], "testing")
    check_contract(kitti_object.source("train", tmp_path))
    (sample,) = kitti_object.source("train", tmp_path)
    # Two points straight ahead, at 10 m and 5 m; camera 2 sees them 6 cm to the right.
    expected = np.zeros((20, 32), np.float32)
    expected[10, round(15 + 1.2 / 10)] = 5  # hides the one at 10 m
    expected[11, round(15 + (-4 * 20 + 1.2) / 20)] = 20
    np.testing.assert_array_equal(sample["depth"], expected)
    np.testing.assert_array_equal(sample["intrinsics"], [[20, 0, 15], [0, 20, 10], [0, 0, 1]])
    assert sample["id"] == "000000" and sample["image"].shape == (20, 32, 3)
    (test,) = kitti_object.source("test", tmp_path)
    assert test["depth"].max() == 10


def test_bad_input(tmp_path: Path, make_frame: Callable) -> None:
    with pytest.raises(MissingFileError, match=r"image_2 .*unpack data_object_im"):
        kitti_object.source("train", tmp_path)
    write(tmp_path, make_frame, np.zeros((2, 4)))
    scan = tmp_path / "training/velodyne/000000.bin"
    scan.write_bytes(scan.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"000000\.bin has 29 bytes.*16"):
        kitti_object.source("train", tmp_path)[0]
    scan.unlink()
    with pytest.raises(MissingFileError, match=r"1 of 3 files .*velodyne/000000\.bin: unpack"):
        kitti_object.source("train", tmp_path)
    (tmp_path / "training/image_2/000000.png").unlink()
    with pytest.raises(DataError, match="no frames in split 'train'"):
        kitti_object.source("train", tmp_path)


def literal_depth(folder: Path, name: str, size: tuple[int, int]) -> np.ndarray:
    """The devkit's formula, point by point: P2 R0_rect Tr_velo_to_cam."""
    lines = (folder / f"calib/{name}.txt").read_text().split("\n")
    values = {line.split(":")[0]: line.split(":")[1].split() for line in lines if line}
    projection = np.array(values["P2"], float).reshape(3, 4)
    rectify, to_camera = np.eye(4), np.eye(4)
    rectify[:3, :3] = np.array(values["R0_rect"], float).reshape(3, 3)
    to_camera[:3] = np.array(values["Tr_velo_to_cam"], float).reshape(3, 4)
    pixels = projection @ rectify @ to_camera
    depth = np.zeros(size)
    for x, y, z, _ in np.fromfile(folder / f"velodyne/{name}.bin", np.float32).reshape(-1, 4):
        u, v, w = pixels @ [x, y, z, 1]
        if w > 0:
            column, row = math.floor(u / w + 0.5), math.floor(v / w + 0.5)
            if 0 <= row < size[0] and 0 <= column < size[1]:
                depth[row, column] = min(depth[row, column] or np.inf, w)
    return depth


def test_real_frames(shared: Path) -> None:
    folder = shared / "data/kitti_object"
    frames = kitti_object.source("train", folder)
    assert [frame["id"] for frame in frames] == ["000000", "000001", "000002"]
    for frame in frames:
        expected = literal_depth(folder / "training", frame["id"], frame["depth"].shape)
        assert abs((frame["depth"] > 0).mean() - (expected > 0).mean()) < 1e-4
        np.testing.assert_allclose(frame["depth"], expected, rtol=1e-6)
        assert 0.03 < (frame["depth"] > 0).mean() < 0.06 and 60 < frame["depth"].max() < 90
