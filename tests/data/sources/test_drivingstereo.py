from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.data.sources import drivingstereo
from diffdepth_jax.errors import DataError, MissingFileError

SIZE = (20, 44)
SEQUENCE, OTHER = "2018-10-19-09-30-39", "2018-07-11-14-48-52"
CALIBRATION = "S_101: 881 400\nP_rect_101: 1003 0 440 0 0 1006 200 0 0 0 1 0\n"


@pytest.fixture
def root(tmp_path: Path, make_frame: Callable, save_image: Callable) -> Path:
    def write(images: str, depths: str, stem: str, number: int) -> None:
        image, depth = make_frame(number, SIZE)
        save_image(tmp_path / images / f"{stem}.jpg", image)
        save_image(tmp_path / depths / f"{stem}.png", depth)

    halves = "left-image-half-size", "depth-map-half-size"
    for number, weather in enumerate(drivingstereo.WEATHERS):
        stem = f"{SEQUENCE}_2018-10-19-09-31-36-43{number}"
        write(f"{weather}/{halves[0]}", f"{weather}/{halves[1]}", stem, number)
    write(f"test-left-image/{halves[0]}", f"test-depth-map/{halves[1]}", f"{OTHER}_a", 4)
    for number, name in enumerate((SEQUENCE, OTHER)):
        folders = f"train-left-image/{name}", f"train-depth-map/{name}"
        write(*folders, f"{name}_b", 5 + number)
    (tmp_path / "calib/half-image-calib").mkdir(parents=True)
    (tmp_path / f"calib/half-image-calib/{SEQUENCE}.txt").write_text(CALIBRATION)
    return tmp_path


def test_weathers(root: Path, make_frame: Callable, check_contract: Callable) -> None:
    frames = drivingstereo.source("weathers", root)
    check_contract(frames)
    assert [frame["condition"] for frame in frames] == ["sunny", "cloudy", "foggy", "rainy"]
    for number, weather in enumerate(drivingstereo.WEATHERS):
        (frame,) = drivingstereo.source(weather, root)
        assert frame["id"] == frames[number]["id"] == f"{SEQUENCE}_2018-10-19-09-31-36-43{number}"
        np.testing.assert_array_equal(frame["depth"], make_frame(number, SIZE)[1] / np.float32(256))
        np.testing.assert_array_equal(
            frame["intrinsics"], [[1003, 0, 440], [0, 1006, 200], [0, 0, 1]]
        )
        assert frame["image"].shape == (*SIZE, 3)


def test_sequences(root: Path, make_frame: Callable, check_contract: Callable) -> None:
    train = drivingstereo.source("train", root)
    assert [frame["id"] for frame in train] == [f"{OTHER}_b", f"{SEQUENCE}_b"]
    np.testing.assert_array_equal(train[1]["depth"], make_frame(5, SIZE)[1] / np.float32(256))
    assert train[1]["intrinsics"][0, 0] == 1003 and train[1]["condition"] == "day"
    check_contract(drivingstereo.source("test", root))
    (test,) = drivingstereo.source("test", root)
    np.testing.assert_array_equal(test["depth"], make_frame(4, SIZE)[1] / np.float32(256))
    assert np.isnan(test["intrinsics"]).all()  # its calibration has not been downloaded
    (root / "test-calib/half-image-calib").mkdir(parents=True)
    (root / f"test-calib/half-image-calib/{OTHER}.txt").write_text("P_rect_101: 1 2\n")
    with pytest.raises(DataError, match=r"14-48-52\.txt, P_rect_101: 12 finite numbers"):
        drivingstereo.source("test", root)[0]


def test_missing_and_wrong_files(root: Path, save_image: Callable) -> None:
    path = next((root / "rainy/depth-map-half-size").iterdir())
    save_image(path, np.zeros(SIZE, np.uint8))
    with pytest.raises(DataError, match=r"433\.png.*16-bit"):
        drivingstereo.source("rainy", root)[0]
    path.unlink()
    with pytest.raises(MissingFileError, match=r"1 of 3 files of split 'rainy' .*433\.png: unpack"):
        drivingstereo.source("rainy", root)
    (root / "test-left-image").rename(root / "elsewhere")
    with pytest.raises(MissingFileError, match=r"left-image-half-size .*unpack"):
        drivingstereo.source("test", root)
