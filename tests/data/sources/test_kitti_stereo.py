from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.data.sources import kitti_stereo
from diffdepth_jax.errors import MissingFileError

SIZE = (24, 60)


def write(root: Path, year: int, part: str, make_frame: Callable, save: Callable) -> None:
    images, disparities, calibration, keys = {
        2012: ("colored_0", ("disp_occ", "disp_noc"), "calib", ("P0", "P1")),
        2015: (
            "image_2",
            ("disp_occ_0", "disp_noc_0"),
            "calib_cam_to_cam",
            ("P_rect_02", "P_rect_03"),
        ),
    }[year]
    for number in range(2):
        for second in (10, 11):
            save(root / part / images / f"{number:06d}_{second}.png", make_frame(number, SIZE)[0])
        if part == "training":
            for index, name in enumerate(disparities):
                disparity = make_frame(number + 10 * index, SIZE)[1]
                save(root / part / name / f"{number:06d}_10.png", disparity)
        path = root / part / calibration / f"{number:06d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"{keys[0]}: 720 0 600 45 0 720 170 0 0 0 1 0\n"
            f"{keys[1]}: 720 0 600 -339 0 720 170 0 0 0 1 0\n"
        )


@pytest.mark.parametrize("year", [2012, 2015])
def test_values(
    year: int,
    tmp_path: Path,
    make_frame: Callable,
    save_image: Callable,
    check_contract: Callable,
) -> None:
    write(tmp_path, year, "training", make_frame, save_image)
    write(tmp_path, year, "testing", make_frame, save_image)
    images = kitti_stereo.source("train", tmp_path, year=year)
    assert [frame["id"] for frame in images] == ["000000_10", "000001_10"]
    assert not images[1]["depth"].any() and images[1]["depth"].shape == SIZE
    np.testing.assert_array_equal(
        images[1]["intrinsics"], [[720, 0, 600], [0, 720, 170], [0, 0, 1]]
    )
    for index, depth in enumerate(("occ", "noc")):
        frames = kitti_stereo.source("train", tmp_path, year=year, depth=depth)
        check_contract(frames)
        frame = frames[1]
        image, _ = make_frame(1, SIZE)
        np.testing.assert_array_equal(frame["image"], image)
        disparity = make_frame(1 + 10 * index, SIZE)[1] / 256
        expected = np.divide(384.0, disparity, where=disparity > 0, out=np.zeros(SIZE))
        np.testing.assert_allclose(frame["depth"], expected, rtol=1e-6)
        assert 0.3 < (frame["depth"] > 0).mean() < 0.7
    test = kitti_stereo.source("test", tmp_path, year=year, second_frames=True)
    check_contract(test)
    assert [frame["id"][-3:] for frame in test] == ["_10", "_11"] * 2
    for path in tmp_path.glob("testing/calib*/*"):
        path.unlink()
    with pytest.raises(MissingFileError, match=r"2 of 4 files .*000000\.txt: unpack data_.*calib"):
        kitti_stereo.source("test", tmp_path, year=year)
    next(tmp_path.glob("testing/calib*")).rmdir()
    assert np.isnan(kitti_stereo.source("test", tmp_path, year=year)[0]["intrinsics"]).all()


def test_bad_options(tmp_path: Path) -> None:
    for options in (dict(split="test", depth="occ"), dict(depth="occ", second_frames=True)):
        with pytest.raises(ValueError, match=r"depth is 'occ'.*test"):
            kitti_stereo.Config(**options)
    with pytest.raises(ValueError, match="depth is 'dense'"):
        kitti_stereo.Config(depth="dense")
    with pytest.raises(ValueError, match="year is 2020"):
        kitti_stereo.Config(year=2020)
    with pytest.raises(MissingFileError, match=r"colored_0 .*unpack data_stereo_f"):
        kitti_stereo.source("train", tmp_path, year=2012)
