"""The committed sample, on which the demo trains, is complete."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data.sources import kitti

SAMPLE = Path(__file__).resolve().parents[2] / "sample"
SIZE = (64, 208)
COUNTS = {"train": 240, "val": 60}


def source(split, depth):
    return kitti.source(
        split, SAMPLE / "raw", depth_root=str(SAMPLE / "depth"), depth=depth, cameras=("image_02",)
    )


@pytest.mark.parametrize("split", COUNTS)
def test_every_frame_is_valid(split):
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


def test_splits_share_no_street():
    drives = {
        split: {path.name for path in (SAMPLE / "depth" / split).iterdir()} for split in COUNTS
    }
    assert not drives["train"] & drives["val"]
    pictures = {path.read_bytes() for path in SAMPLE.glob("raw/*/*/image_02/data/*.jpg")}
    assert len(pictures) == sum(COUNTS.values())


def test_dates_have_their_own_cameras():
    folders = list((SAMPLE / "raw").iterdir())
    assert len(folders) == 4
    assert len({(folder / "calib_cam_to_cam.txt").read_text() for folder in folders}) == 4


def test_sample_is_small():
    size = sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file())
    assert size < 13e6


def test_the_tool_renders_the_committed_frames(tmp_path):
    pytest.importorskip("mitsuba", reason="rendering needs the optional extra `render`")
    command = [sys.executable, "tools/render_scenes.py", "--split=val", "--count=1", "--seed=1"]
    command += ["--size=64x208", "--samples=16", "--image_format=jpg", "--processes=1"]
    subprocess.run([*command, f"--output={tmp_path}"], cwd=SAMPLE.parent, check=True)
    options = json.loads((SAMPLE / "render.json").read_text())
    assert options == json.loads((tmp_path / "render.json").read_text())
    drawn = {path.relative_to(tmp_path) for path in tmp_path.rglob("image_02/**/*.*")}
    assert len(drawn) == 3
    for name in drawn:
        again, committed = (
            np.asarray(Image.open(root / name)).astype(float) for root in (tmp_path, SAMPLE)
        )
        # Other processors round differently: at edges another surface may be hit.
        assert (np.abs(again - committed) > 2).mean() < 0.005, name
