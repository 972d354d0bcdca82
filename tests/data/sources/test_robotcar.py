import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.data.sources import robotcar
from diffdepth_jax.errors import DataError, MissingFileError

DAY, NIGHT = robotcar.SCENES
CLOUDS = "lms_front_synchronized/vo/time_margin=+-4.0e+06"
SIZE = (20, 32)
# As in the SDK: x forward, y right and z down become the camera's z, x and y.
MODEL = "20 20 15 10\n0 0 1 0\n1 0 0 0\n0 1 0 0\n0 0 0 1\n"
STAMPS = {DAY: ["1418132504537582", "1418132504537583"], NIGHT: ["1418756721422679"]}


@pytest.fixture
def root(tmp_path: Path, make_frame: Callable, save_image: Callable) -> Path:
    (tmp_path / "splits").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models/stereo_wide_left.txt").write_text(MODEL)
    for scene, stamps in STAMPS.items():
        (tmp_path / scene / CLOUDS).mkdir(parents=True)
        for number, stamp in enumerate(stamps):
            save_image(
                tmp_path / scene / "stereo/left" / f"{stamp}.png", make_frame(number, SIZE)[0]
            )
            # x, y and z of three points: one hides behind another, one is behind the camera.
            cloud = np.array([[10, 5, -3], [0, 0, 0], [1, 0.5, 0]], np.float32)
            cloud.tofile(tmp_path / scene / CLOUDS / f"{stamp}.pcd.bin")
        lines = "\n".join(f"{stamp} 1 {'3' * 16}" for stamp in stamps)
        (tmp_path / f"splits/{scene}_test.txt").write_text(f"{lines}\n")
        neighbours = "\n".join(f"{'1' * 16} {stamp} {'2' * 16}" for stamp in stamps)
        for part in ("train", "val"):
            (tmp_path / f"splits/{scene}_{part}_stride_1.txt").write_text(f"{neighbours}\n")
    return tmp_path


def ids(frames: robotcar.FrameSource) -> list[str]:
    return [frame["id"] for frame in frames]


def test_values(root: Path, make_frame: Callable, check_contract: Callable) -> None:
    frames = robotcar.source("test", root)
    check_contract(frames)
    assert ids(frames) == STAMPS[DAY] + STAMPS[NIGHT]
    assert [frame["condition"] for frame in frames] == ["day-clear"] * 2 + ["night-clear"]
    expected = np.zeros(SIZE, np.float32)
    expected[12, 15] = 5
    np.testing.assert_array_equal(frames[1]["depth"], expected)
    np.testing.assert_array_equal(frames[1]["image"], make_frame(1, SIZE)[0])
    np.testing.assert_array_equal(frames[1]["intrinsics"], [[20, 0, 15], [0, 20, 10], [0, 0, 1]])


def test_splits(root: Path, tmp_path: Path) -> None:
    assert ids(robotcar.source("val", root, conditions=("night-clear",))) == STAMPS[NIGHT]
    assert robotcar.source("val", root)[2]["depth"].max() == 5
    train = robotcar.source("train", root)
    assert len(train) == 3 and not train[0]["depth"].any()
    excluded = tmp_path / "filter.txt"
    excluded.write_text(f"{STAMPS[DAY][0]}\n")
    assert ids(robotcar.source("train", root, exclude=str(excluded)))[0] == STAMPS[DAY][1]
    listed = tmp_path / f"{NIGHT}_few.txt"
    listed.write_text(STAMPS[NIGHT][0])
    assert ids(robotcar.source(str(listed), root)) == STAMPS[NIGHT]


def test_bad_input(root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("")
    with pytest.raises(DataError, match=r"list\.txt"):
        robotcar.source(str(listed), root)
    path = root / f"splits/{DAY}_test.txt"
    path.write_text("1418132504537582\n14181\n")
    with pytest.raises(DataError, match=r"_test\.txt, line 2: '14181'"):
        robotcar.source("test", root)
    path.write_text("1418132504537589\n")
    with pytest.raises(MissingFileError, match=r"2 of 6 files .*7589\.png: run md4all's precomp"):
        robotcar.source("test", root)
    path.write_text("1418132504537582\n" * 2)
    with pytest.raises(DataError, match="frame 1418132504537582 occurs twice"):
        robotcar.source("test", root)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"_test\.txt .*split must name"):
        robotcar.source("test", root)
    with pytest.raises(ValueError, match="conditions has 'fog'"):
        robotcar.Config(conditions=("fog",))
    with pytest.raises(ValueError, match="conditions is empty"):
        robotcar.Config(conditions=())


def test_real_images_and_model(shared: Path, tmp_path: Path) -> None:
    real = shared / "data/robotcar"
    (tmp_path / "splits").mkdir()
    os.symlink(real / "sdk/models", tmp_path / "models")
    for scene, stamp in ((DAY, STAMPS[DAY][0]), (NIGHT, STAMPS[NIGHT][0])):
        (tmp_path / scene / "stereo").mkdir(parents=True)
        os.symlink(real / "stereo_left_rgb", tmp_path / scene / "stereo/left")
        (tmp_path / f"splits/{scene}_test.txt").write_text(f"{stamp}\n")
        # Instead of a real point cloud, a wall 20 m ahead, in the vehicle's axes.
        y, z = np.meshgrid(np.linspace(-12, 12, 500), np.linspace(-9, 9, 400))
        cloud = np.stack([np.full(y.size, 20), y.ravel(), z.ravel()]).astype(np.float32)
        (tmp_path / scene / CLOUDS).mkdir(parents=True)
        cloud.tofile(tmp_path / scene / CLOUDS / f"{stamp}.pcd.bin")
    day, night = robotcar.source("test", tmp_path)
    for frame in (day, night):
        assert frame["image"].shape == (960, 1280, 3)
        assert frame["intrinsics"][:2, 2].tolist() == pytest.approx([643.646973, 493.378998])
        assert set(np.unique(frame["depth"])) == {0, 20}
        rows, columns = np.nonzero(frame["depth"])
        assert set(columns) == set(np.floor(983.044006 * y[0] / 20 + 643.646973 + 0.5))
        assert set(rows) == set(np.floor(983.044006 * z[:, 0] / 20 + 493.378998 + 0.5))
    assert day["image"].mean() > 1.5 * night["image"].mean()
