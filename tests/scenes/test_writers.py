"""KITTI's layout: what is written is read back, by plain means and by the source."""

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data.sources import kitti
from diffdepth_jax.scenes import layouts, writers


@pytest.fixture
def written(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 48, 3), dtype=np.uint8)
    dense = rng.uniform(1, 90, (16, 48))
    dense[:3] = 0
    dense[3, :2] = 300.0, 255.9
    sparse = np.where(rng.random(dense.shape) < 0.1, dense, 0)
    frame = writers.KittiFrame(tmp_path, "val", "2000_01_02", 7)
    intrinsics = layouts.pinhole((16, 48), 0.6)
    writers.write_frame(frame, image, dense, sparse, intrinsics)
    return frame, image, dense, sparse, intrinsics


def test_paths_are_kittis(written, tmp_path):
    drive = "2000_01_02_drive_0007_sync"
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "raw/2000_01_02/calib_cam_to_cam.txt",
        f"raw/2000_01_02/{drive}/image_02/data/0000000005.png",
        f"depth/val/{drive}/proj_depth/groundtruth/image_02/0000000005.png",
        f"depth/val/{drive}/proj_depth/dense/image_02/0000000005.png",
    }


def test_files_hold_what_was_written(written):
    frame, image, dense, sparse, _ = written
    np.testing.assert_array_equal(np.asarray(Image.open(frame.image)), image)
    for kind, depth in (("dense", dense), ("groundtruth", sparse)):
        code = np.asarray(Image.open(frame.depth(kind)))
        assert code.dtype == np.uint16
        expected = np.where(depth <= writers.MAX_DEPTH, depth, 0)
        assert np.abs(code / 256 - expected).max() <= 0.5 / 256
        assert ((code > 0) == (expected > 0)).all()


@pytest.mark.parametrize("depth_kind", ["dense", "groundtruth"])
def test_the_kitti_source_reads_it(written, tmp_path, depth_kind):
    _, image, dense, sparse, intrinsics = written
    source = kitti.source(
        "val", tmp_path / "raw", depth_root=str(tmp_path / "depth"), depth=depth_kind
    )
    assert len(source) == 1
    sample = source[0]
    np.testing.assert_array_equal(sample["image"], image)
    expected = {"dense": dense, "groundtruth": sparse}[depth_kind]
    expected = np.where(expected <= writers.MAX_DEPTH, expected, 0)
    np.testing.assert_allclose(sample["depth"], expected, atol=0.5 / 256 + 1e-6)
    np.testing.assert_allclose(sample["intrinsics"], intrinsics, rtol=1e-5)
