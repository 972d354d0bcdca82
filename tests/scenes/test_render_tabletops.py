"""Table-tops, from the tool run as a process to the data source that reads them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data.sources import kitti, nyu
from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.run import dataset

pytest.importorskip("mitsuba", reason="rendering needs the optional extra `render`")

PROJECT = Path(__file__).resolve().parents[2]


def run(output, *flags):
    command = [sys.executable, "tools/render_scenes.py", "--kind=tabletop", "--size=24x32"]
    command += ["--samples=1", "--processes=1", "--count=1", f"--output={output}", *flags]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_nyu_layout(tmp_path):
    """One scene, three conditions: equal depth, separate masks, read back by the source."""
    done = run(tmp_path, "--layout=nyu", "--conditions=all", "--seed=2")
    assert done.returncode == 0, done.stderr
    clear, depths, images = None, set(), set()
    for name, category in (("clear", None), ("transparent", 3), ("mirror", 2)):
        root = tmp_path if name == "clear" else tmp_path / name
        (scene,) = (root / "sync").iterdir()
        depths.add((scene / "sync_depth_00000.png").read_bytes())
        images.add((scene / "rgb_00000.png").read_bytes())
        mask = np.asarray(Image.open(scene / "mask_cat_00000.png"))
        assert mask.shape == (24, 32) and mask.dtype == np.uint8
        assert set(np.unique(mask[mask >= 2])) == ({category} if category else set())
        (sample,) = nyu.source("train", root, layout="sync")
        assert sample["condition"] == name
        assert sample["image"].shape == (24, 32, 3) and (sample["depth"] > 0).all()
        focal = 0.75 * 32  # the first camera's
        expected = [[focal, 0, 15.5], [0, focal, 11.5], [0, 0, 1]]
        np.testing.assert_allclose(sample["intrinsics"], expected)
        clear = sample if clear is None else clear
        np.testing.assert_array_equal(sample["depth"], clear["depth"])
    assert len(depths) == 1 and len(images) == 3


def test_kitti_layout_is_dense_and_has_masks(tmp_path):
    """Protocols for transparent things and mirrors find each picture's mask."""
    assert run(tmp_path, "--layout=kitti", "--conditions=clear,mirror").returncode == 0
    (drive,) = (tmp_path / "depth" / "train").glob("*/proj_depth")
    dense, sparse = (
        np.asarray(Image.open(next((drive / kind).rglob("*.png"))))
        for kind in ("dense", "groundtruth")
    )
    np.testing.assert_array_equal(dense, sparse)
    assert (dense > 0).all()
    classes = {}
    for name, root in (("clear", tmp_path), ("mirror", tmp_path / "mirror")):
        source = kitti.source("train", root / "raw", depth_root=str(tmp_path / "depth"))
        (sample,) = source
        result = dataset.score_dataset(
            lambda images: [image[..., 0] + np.float32(1) for image in images],
            source,
            [protocols.get("cleargrasp")],
            tmp_path / f"results_{name}",
        )
        classes[name] = set(result["cleargrasp"]["classes"])
        assert sample["tom_mask"].any() == (name == "mirror")
    assert classes == {"clear": {"Other"}, "mirror": {"Other", "ToM"}}


def test_options_of_streets_are_refused(tmp_path):
    for flag, word in (("--lidar_failures", "lidar"), ("--conditions=fog", "fog")):
        failed = run(tmp_path, flag)
        assert failed.returncode == 2 and word in failed.stderr
