"""The committed sample is whole: what the demo trains on."""

from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.data.sources import kitti

SAMPLE = Path(__file__).resolve().parents[2] / "sample"
SIZE = (80, 256)
COUNTS = {"train": 80, "val": 24}


def source(split, depth):
    return kitti.source(
        split, SAMPLE / "raw", depth_root=str(SAMPLE / "depth"), depth=depth, cameras=("image_02",)
    )


@pytest.mark.parametrize("split", COUNTS)
def test_every_frame_is_sound(split):
    dense, sparse = source(split, "dense"), source(split, "groundtruth")
    assert len(dense) == len(sparse) == COUNTS[split]
    shares = []
    for index in range(len(dense)):
        exact, lidar = dense[index], sparse[index]
        assert exact["id"] == lidar["id"]
        np.testing.assert_array_equal(exact["image"], lidar["image"])
        assert exact["image"].shape == (*SIZE, 3) and exact["image"].std() > 15
        assert exact["depth"].shape == SIZE
        hit = lidar["depth"] > 0
        # Both are rounded to 1/256 m from the same depth.
        np.testing.assert_array_equal(lidar["depth"][hit], exact["depth"][hit])
        assert lidar["depth"].max() <= 80.5
        assert (exact["depth"] > 0).mean() > 0.4
        focal = exact["intrinsics"][0, 0]
        assert 0.5 < focal / SIZE[1] < 0.75 and exact["intrinsics"][1, 1] == focal
        shares.append(hit.mean())
    assert 0.04 < np.mean(shares) < 0.05
    assert min(shares) > 0.02 and max(shares) < 0.08


def test_no_street_is_in_both_splits():
    drives = {
        split: {path.name for path in (SAMPLE / "depth" / split).iterdir()} for split in COUNTS
    }
    assert not drives["train"] & drives["val"]
    pictures = {path.read_bytes() for path in SAMPLE.glob("raw/*/*/image_02/data/*.png")}
    assert len(pictures) == sum(COUNTS.values())


def test_dates_have_their_own_cameras():
    folders = list((SAMPLE / "raw").iterdir())
    assert len(folders) == 4
    assert len({(folder / "calib_cam_to_cam.txt").read_text() for folder in folders}) == 4


def test_sample_is_small():
    size = sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file())
    assert size < 5.5e6
