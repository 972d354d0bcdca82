"""Precision, recall and F-score of occluding contours."""

import numpy as np
import pytest

from diffdepth_jax.evaluation import boundary


def literal(prediction, target, valid_mask, ratio, pooling="pairs"):
    """The definition, pair by pair: (F-score, precision, recall), or None without a contour."""
    height, width = target.shape
    directions = []
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        both = predicted = true = 0
        for row, column in np.ndindex(height, width):
            other = row + down, column + right
            if not (0 <= other[0] < height and 0 <= other[1] < width):
                continue
            if not (valid_mask[row, column] and valid_mask[other]):
                continue
            ours = prediction[other] / prediction[row, column] > ratio
            its = target[other] / target[row, column] > ratio
            both, predicted, true = both + (ours and its), predicted + ours, true + its
        directions.append((both, predicted, true))
    if pooling == "pairs":
        directions = [tuple(map(sum, zip(*directions, strict=True)))]
    if not any(true for _, _, true in directions):
        return None
    precision = sum(both / max(predicted, 1) for both, predicted, _ in directions) / len(directions)
    recall = sum(both / max(true, 1) for both, _, true in directions) / len(directions)
    total = precision + recall
    return (2 * precision * recall / total if total else 0.0), precision, recall


def scene(seed):
    """Boxes in front of a slope, and a blurred, scaled and noisy prediction."""
    generator = np.random.default_rng(seed)
    target = np.linspace(20, 5, 24)[:, None].repeat(30, axis=1)
    for _ in range(6):
        row, column = generator.integers(0, (20, 26))
        target[row : row + 8, column : column + 7] = generator.uniform(2, 15)
    prediction = (target + np.roll(target, 1, axis=1)) * np.exp(generator.normal(0, 0.03, (24, 30)))
    return prediction, target, generator.random(target.shape) > 0.1


@pytest.mark.parametrize("pooling", ["pairs", "directions"])
@pytest.mark.parametrize("seed", range(3))
def test_contours_equal_the_literal_definition(seed, pooling):
    prediction, target, valid_mask = scene(seed)
    for ratio in (1.02, *boundary.RATIOS, 2.0):
        found = boundary.at_ratio(prediction, target, valid_mask, ratio, pooling)
        assert found == pytest.approx(literal(prediction, target, valid_mask, ratio, pooling))
        assert 0 < found.f1 < 1


def test_the_metrics_are_given_per_ratio_and_as_depth_pros_weighted_mean():
    prediction, target, valid_mask = scene(3)
    found = boundary.compute(prediction, target, valid_mask)
    assert tuple(found) == boundary.METRICS
    for ratio in (1.05, 1.1, 1.15, 1.2, 1.25):
        expected = literal(prediction, target, valid_mask, ratio)
        for kind, value in zip(("f1", "precision", "recall"), expected, strict=True):
            assert found[f"boundary_{kind}_{ratio:.2f}"] == pytest.approx(value)
    ratios = [1.05 + 0.2 * index / 9 for index in range(10)]
    values = [literal(prediction, target, valid_mask, ratio) for ratio in ratios]
    for index, kind in enumerate(("f1", "precision", "recall")):
        mean = sum(r * v[index] for r, v in zip(ratios, values, strict=True)) / sum(ratios)
        assert found[f"boundary_{kind}"] == pytest.approx(mean)


def test_an_exact_case():
    """Of two true contours one is found and one is a pixel off; the prediction has one too many."""
    target = np.array([[1.0, 2, 2, 2, 4, 4, 4, 4]])
    prediction = np.array([[1.0, 2, 2, 2, 2, 4, 4, 8]])
    found = boundary.at_ratio(prediction, target, np.ones((1, 8), bool), 1.5)
    assert found == pytest.approx((0.4, 1 / 3, 1 / 2))
    # The nearer side matters: a step down is not a step up.
    found = boundary.at_ratio(prediction[:, ::-1], target, np.ones((1, 8), bool), 1.5)
    assert found == (0, 0, 0)


def test_a_perfect_prediction_at_any_scale_and_a_flat_one():
    _, target, valid_mask = scene(1)
    for scale in (1.0, 0.01, 37.0):
        assert set(boundary.compute(scale * target, target, valid_mask).values()) == {1.0}
    assert set(boundary.compute(np.ones_like(target), target, valid_mask).values()) == {0.0}


def test_where_the_truth_has_no_contour_nothing_is_defined():
    prediction, target, valid_mask = scene(2)
    assert boundary.compute(prediction, np.ones_like(target), valid_mask) == {}
    step = np.where(np.arange(30) < 15, 1.0, 1.12)[None].repeat(24, axis=0)
    found = boundary.compute(prediction, step, valid_mask)
    assert {name for name in found if "1." in name} == {
        f"boundary_{kind}_{ratio}" for kind in boundary.KINDS for ratio in ("1.05", "1.10")
    }
    perfect = boundary.compute(step, step, valid_mask)
    assert perfect["boundary_f1"] == pytest.approx(1)  # over the ratios that have contours


def test_invalid_pixels_have_no_influence():
    prediction, target, valid_mask = scene(0)
    expected = boundary.compute(prediction, target, valid_mask)
    changed = [np.where(valid_mask, depth, np.nan) for depth in (prediction, target)]
    assert boundary.compute(*changed, valid_mask) == expected
    prediction = prediction.copy()
    prediction[valid_mask.nonzero()[0][0], valid_mask.nonzero()[1][0]] = 0
    with pytest.raises(ValueError, match="the prediction is not positive"):
        boundary.compute(prediction, target, valid_mask)
    with pytest.raises(ValueError, match="above 1"):
        boundary.at_ratio(target, target, valid_mask, 1.0)


def test_a_scan_is_not_dense_and_sky_does_not_matter():
    generator = np.random.default_rng(0)
    sky = np.ones((40, 60), bool)
    sky[:35] = False
    assert boundary.is_dense(sky)
    assert boundary.is_dense(generator.random((40, 60)) > 0.2)
    assert not boundary.is_dense(generator.random((40, 60)) < 0.2)
