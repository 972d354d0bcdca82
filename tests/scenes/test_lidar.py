"""The lidar model on scenes whose depth is known by formula."""

import numpy as np
import pytest

from diffdepth_jax.scenes import layouts, lidar

MOUNT = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # level, looking ahead


def flat_road(size, focal=0.58, height=1.65, wall=40.0):
    """Depth of a flat road that ends at a wall filling the rest of the picture."""
    intrinsics = layouts.pinhole(size, focal)
    below = (np.arange(size[0]) - intrinsics[1, 2]) / intrinsics[1, 1]
    depth = np.where(below > 0, height / np.maximum(below, 1e-9), np.inf)
    return np.broadcast_to(np.minimum(depth, wall)[:, None], size).copy(), intrinsics


@pytest.mark.parametrize("size", [(80, 256), (96, 320), (192, 640), (375, 1242)])
def test_the_share_of_pixels_does_not_depend_on_the_size(size):
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
    assert np.abs(angle + 5).max() < 0.06, "within half a pixel"


def test_no_returns_from_sky_or_beyond_range():
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


def measured(medium, depth, intrinsics, seed=0):
    return lidar.scan(depth, intrinsics, MOUNT, np.random.default_rng(seed), medium=medium)


def test_a_perfect_medium_changes_nothing():
    depth, intrinsics = flat_road((80, 256))
    plain = lidar.scan(depth, intrinsics, MOUNT, np.random.default_rng(0))
    np.testing.assert_array_equal(measured(lidar.Medium(), depth, intrinsics), plain)


def test_beams_pass_through_glass_or_are_lost():
    """A pane at 10 m, on the left in front of a wall at 30 m, on the right in front of nothing."""
    depth, intrinsics = np.full((80, 256), 10.0), layouts.pinhole((80, 256), 0.58)
    behind = np.where(np.arange(256) < 128, 30.0, 0.0) * np.ones((80, 1))
    glass = lidar.Medium(transparent=np.ones(depth.shape, bool), behind=behind)
    plain = measured(None, depth, intrinsics) > 0
    sparse = measured(glass, depth, intrinsics)
    assert set(np.unique(sparse)) == {0.0, 10.0, 30.0}
    left, right = np.s_[:, :128], np.s_[:, 128:]
    assert 0.85 < (sparse[left] == 30).sum() / plain[left].sum() < 1
    assert (sparse[right] > 0).sum() < 0.2 * plain[right].sum()


def test_fog_shortens_the_range_and_gives_false_returns():
    depth, intrinsics = flat_road((192, 640), wall=70.0)
    clear = measured(None, depth, intrinsics)
    thin, thick = (measured(lidar.Medium(extinction=e), depth, intrinsics) for e in (0.01, 0.1))
    for sparse in (thin, thick):
        true = sparse[sparse > 0] == depth[sparse > 0]
        assert (sparse[sparse > 0][~true] < depth[sparse > 0][~true]).all(), (
            "false returns must be nearer"
        )
    reach = [sparse[(sparse > 0) & (sparse == depth)].max() for sparse in (clear, thin, thick)]
    assert reach[0] > 60 and reach[1] > reach[2] and reach[2] < 40
    false = [((sparse > 0) & (sparse != depth)).sum() for sparse in (clear, thin, thick)]
    assert false[0] == 0 and false[1] < false[2] and false[2] > 20


def test_wet_ground_returns_less():
    depth, intrinsics = flat_road((80, 256))
    wet = np.zeros(depth.shape, bool)
    wet[50:] = True
    plain, less = (measured(m, depth, intrinsics) > 0 for m in (None, lidar.Medium(wet=wet)))
    assert 0.35 < less[50:].sum() / plain[50:].sum() < 0.6
    assert (less[:50] == plain[:50]).all()
