import numpy as np
import pytest

from diffdepth_jax.adverse import structure

METRIC = {"prediction_is": "metric_depth", "label_is": "metric_depth"}


@pytest.fixture
def depth():
    """A street: receding ground with boxes on it."""
    depth = np.broadcast_to(np.geomspace(60, 3, 60)[:, None], (60, 160)).copy()
    for column, near in ((20, 6.0), (60, 12.0), (110, 9.0)):
        depth[18:44, column : column + 25] = near
    return depth


def test_scale_and_shift_do_not_matter(depth):
    found = structure.compare(3 * depth + 2, depth, **METRIC)
    assert found.abs_rel == pytest.approx(0, abs=1e-12) and found.edge_agreement == 1


def test_abs_rel_is_the_mean_over_known_pixels(depth):
    """By hand: pixels at 1 m and 2 m, swapped in half of the prediction."""
    label = np.ones((8, 8))
    label[:, 4:] = 2
    prediction = label.copy()
    prediction[:4, :] = 3 - prediction[:4, :]
    # Each side is half 1 and half 2, so the fit is their mean, 1.5.
    found = structure.compare(prediction, label, **METRIC)
    assert found.abs_rel == pytest.approx((0.5 / 1 + 0.5 / 2) / 2)
    label[0] = 0
    prediction[0] = 1e6
    prediction[1:] = label[1:]
    assert structure.compare(prediction, label, **METRIC).abs_rel == pytest.approx(0, abs=1e-9)


def test_agreement_falls_when_things_move_or_vanish(depth):
    moved = [structure.compare(np.roll(depth, n, 1), depth, **METRIC) for n in (0, 2, 6, 12)]
    errors = [each.abs_rel for each in moved]
    agreements = [each.edge_agreement for each in moved]
    assert errors == sorted(errors) and agreements == sorted(agreements, reverse=True)
    assert agreements[0] == 1 and agreements[-1] < 0.6
    gone = depth.copy()
    gone[18:44, 60:85] = np.geomspace(60, 3, 60)[18:44, None]
    found = structure.compare(gone, depth, **METRIC)
    assert found.abs_rel > 0.02 and found.edge_agreement < 0.95


def test_relative_teachers(depth):
    disparity = 5 / depth + 0.3
    found = structure.compare(
        disparity, depth, prediction_is="relative_disparity", label_is="metric_depth"
    )
    assert found.abs_rel == pytest.approx(0, abs=1e-9) and found.edge_agreement == 1
    both = {"prediction_is": "relative_disparity", "label_is": "relative_disparity"}
    found = structure.compare(2 * disparity - 1, disparity, **both)
    assert found.abs_rel == pytest.approx(0, abs=1e-9) and found.edge_agreement == 1
    other = structure.compare(np.roll(disparity, 12, 1), disparity, **both)
    assert other.abs_rel > 0.02 and other.edge_agreement < 0.6


def test_a_pattern_of_the_network_is_not_an_edge(depth):
    """Upsampling leaves the same pattern in all predictions."""
    flat = np.full_like(depth, 10.0)
    pattern = 1 + 0.05 * (np.indices(depth.shape).sum(0) % 2)
    found = structure.compare(flat * pattern, depth * pattern, **METRIC)
    assert found.edge_agreement < 0.3


def test_sparse_labels_have_no_edges(depth):
    label = np.where(np.indices(depth.shape).sum(0) % 7 == 0, depth, 0)
    found = structure.compare(depth * 2, label, **METRIC)
    assert found.abs_rel == pytest.approx(0, abs=1e-9) and found.edge_agreement is None


def test_flat_maps_and_empty_labels(depth):
    flat = np.full_like(depth, 5.0)
    assert structure.compare(flat, flat, **METRIC).edge_agreement == 1
    assert structure.compare(flat, depth, **METRIC).edge_agreement == 0
    assert structure.compare(depth, np.zeros_like(depth), **METRIC) is None
    assert structure.compare(np.full_like(depth, np.nan), depth, **METRIC) is None
