"""The lidar model on scenes whose depth is known by formula."""

import numpy as np
import pytest

from diffdepth_jax.scenes import layouts, lidar

MOUNT = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # level, looking ahead


def flat_road(size, focal=0.58, height=1.65, wall=40.0):
    """Depth of a flat road closed by a wall that fills the picture's rest."""
    intrinsics = layouts.pinhole(size, focal)
    below = (np.arange(size[0]) - intrinsics[1, 2]) / intrinsics[1, 1]
    depth = np.where(below > 0, height / np.maximum(below, 1e-9), np.inf)
    return np.broadcast_to(np.minimum(depth, wall)[:, None], size).copy(), intrinsics


@pytest.mark.parametrize("size", [(80, 256), (96, 320), (192, 640), (375, 1242)])
def test_share_of_pixels_stays_with_the_size(size):
    depth, intrinsics = flat_road(size)
    sparse = lidar.scan(depth, intrinsics, MOUNT, np.random.default_rng(0))
    assert 0.035 < (sparse > 0).mean() < 0.065


def test_measures_the_dense_depth():
    depth, intrinsics = flat_road((80, 256))
    sparse = lidar.scan(depth, intrinsics, MOUNT, np.random.default_rng(0))
    hit = sparse > 0
    np.testing.assert_array_equal(sparse[hit], depth[hit])


def test_beams_are_at_their_angles():
    depth, intrinsics = flat_road((375, 1242), wall=60.0)
    still = lidar.Lidar(elevations=(-5.0,), jitter=0.0, dropout=0.0, far_dropout=0.0)
    sparse = lidar.scan(depth, intrinsics, MOUNT, np.random.default_rng(0), still)
    row, column = np.nonzero(sparse)
    across = (column - intrinsics[0, 2]) / intrinsics[0, 0]
    angle = np.degrees(np.arctan2((intrinsics[1, 2] - row) / intrinsics[1, 1], np.hypot(1, across)))
    assert np.abs(angle + 5).max() < 0.06, "half a pixel"


def test_nothing_from_sky_or_beyond_range():
    depth, intrinsics = flat_road((80, 256), wall=100.0)
    depth[:, :50] = 0
    sparse = lidar.scan(depth, intrinsics, MOUNT, np.random.default_rng(0))
    assert (sparse[:, :50] == 0).all() and (sparse[:, 50:] > 0).any()
    assert sparse.max() <= 80


def test_dropout_loses_returns():
    depth, intrinsics = flat_road((80, 256))
    count = [
        (lidar.scan(depth, intrinsics, MOUNT, np.random.default_rng(0), model) > 0).sum()
        for model in (lidar.Lidar(dropout=0.0, far_dropout=0.0), lidar.Lidar(dropout=0.5))
    ]
    assert 0.4 < count[1] / count[0] < 0.6


def test_looking_up_sees_fewer_returns():
    depth, intrinsics = flat_road((80, 256))
    up = np.radians(8.0)
    tilt = np.array([[1, 0, 0], [0, np.cos(up), -np.sin(up)], [0, np.sin(up), np.cos(up)]])
    level, raised = (
        (lidar.scan(depth, intrinsics, mount, np.random.default_rng(0)) > 0).sum()
        for mount in (MOUNT, tilt @ MOUNT)
    )
    assert raised < 0.9 * level
