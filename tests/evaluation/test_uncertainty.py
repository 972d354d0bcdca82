"""Whether the spread predicts the error: rank correlation and sparsification."""

import itertools

import numpy as np
import pytest
from scipy import stats

from diffdepth_jax.evaluation import uncertainty


def ranks(values):
    """Each value's rank; equal values share their mean rank."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def literal_correlation(first, second):
    a, b = ranks(first), ranks(second)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    norm = sum((p - mean_a) ** 2 for p in a) * sum((q - mean_b) ** 2 for q in b)
    return product / norm**0.5


def literal_curve(order, error):
    """The mean error of the first k pixels in this order, for k = 1 to n."""
    return [sum(error[index] for index in order[:k]) / k for k in range(1, len(order) + 1)]


def literal_area(spread, error):
    """The area between the two curves, pixel by pixel; assumes that no spreads are equal."""
    by_spread = literal_curve(sorted(range(len(error)), key=lambda index: spread[index]), error)
    oracle = literal_curve(sorted(range(len(error)), key=lambda index: error[index]), error)
    return sum(ours - best for ours, best in zip(by_spread, oracle, strict=True)) / len(error)


def frame(seed, shape=(9, 13)):
    generator = np.random.default_rng(seed)
    target = generator.uniform(2, 60, shape)
    spread = generator.gamma(2, 1, shape)
    prediction = np.maximum(target + spread * generator.normal(0, 1, shape), 0.1)
    return spread, prediction, target, generator.random(shape) > 0.3


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_the_literal_definitions(seed):
    spread, prediction, target, valid_mask = frame(seed)
    found = uncertainty.compute(spread, prediction, target, valid_mask).metrics
    assert tuple(found) == uncertainty.METRICS
    spread, prediction, target = (
        each[valid_mask].tolist() for each in (spread, prediction, target)
    )
    error = [abs(p - t) for p, t in zip(prediction, target, strict=True)]
    mean = sum(error) / len(error)
    assert found["spread"] == pytest.approx(sum(spread) / len(spread))
    assert found["rank_correlation"] == pytest.approx(literal_correlation(spread, error))
    assert found["ause"] == pytest.approx(literal_area(spread, error))
    assert found["ause_rel"] == pytest.approx(literal_area(spread, error) / mean)
    assert found["rank_correlation_depth"] == pytest.approx(literal_correlation(prediction, error))
    assert found["ause_rel_depth"] == pytest.approx(literal_area(prediction, error) / mean)
    relative = [
        [a / b for a, b in zip(*pair, strict=True)]
        for pair in ((spread, prediction), (error, target))
    ]
    expected = literal_correlation(*relative)
    assert found["rank_correlation_relative"] == pytest.approx(expected)
    oracle = literal_curve(sorted(range(len(error)), key=lambda index: error[index]), error)
    assert found["ause_rel_random"] == pytest.approx(1 - sum(oracle) / len(oracle) / mean)


def test_equal_values_share_a_rank():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 5, (2, 40)).astype(float)
    found = uncertainty.rank_correlation(first, second)
    assert found == pytest.approx(literal_correlation(first.tolist(), second.tolist()))
    assert found == pytest.approx(stats.spearmanr(first, second).statistic)
    assert uncertainty.rank_correlation(first, np.ones(40)) is None
    assert uncertainty.rank_correlation(first, first**3) == pytest.approx(1)
    assert uncertainty.rank_correlation(first, -first) == pytest.approx(-1)


def test_equal_spreads_may_be_removed_in_any_order():
    spread, error = np.array([2.0, 1, 2, 1, 2]), np.array([5.0, 1, 7, 2, 0])
    curves = [
        literal_curve([*low, *high], error)
        for low in itertools.permutations((1, 3))
        for high in itertools.permutations((0, 2, 4))
    ]
    found = uncertainty.sparsification(spread, error)
    np.testing.assert_allclose(found, np.mean(curves, axis=0), rtol=1e-12)
    np.testing.assert_allclose(uncertainty.sparsification(np.ones(5), error), 3.0)


def test_exact_cases():
    """Four pixels with errors 0, 1, 2 and 3: best order, worst order, no order."""
    target = np.full((1, 4), 10.0)
    error = np.array([[0.0, 1, 2, 3]])
    everywhere = np.ones((1, 4), bool)
    # Mean errors of the 1 to 4 most certain pixels: 0, .5, 1, 1.5 at best; 3, 2.5, 2, 1.5 at worst.
    for spread, area in ((error, 0.0), (3 - error, 1.5), (np.ones((1, 4)), 0.75)):
        found = uncertainty.compute(spread, target - error, target, everywhere).metrics
        assert found["ause"] == pytest.approx(area)
        assert found["ause_rel"] == pytest.approx(area / 1.5)
        assert found["ause_rel_random"] == pytest.approx(0.5)
        assert found["ause_rel_depth"] == pytest.approx(1)
        expected = None if area == 0.75 else 1 - 4 * area / 3
        assert found.get("rank_correlation") == pytest.approx(expected)


def test_curves_start_at_one_and_the_oracle_is_lowest():
    spread, prediction, target, valid_mask = frame(1, (40, 50))
    curves = uncertainty.compute(spread, prediction, target, valid_mask).curves
    assert tuple(curves) == uncertainty.CURVES
    error = np.abs(prediction - target)[valid_mask]
    order = error[np.argsort(spread[valid_mask])]
    for index, removed in enumerate(uncertainty.REMOVED):
        kept = int(np.ceil((1 - removed) * order.size - 1e-9))
        assert curves["spread"][index] == pytest.approx(order[:kept].mean() / error.mean())
        others = min(curves["spread"][index], curves["depth"][index])
        assert curves["oracle"][index] <= others + 1e-12
    assert [curve[0] for curve in curves.values()] == pytest.approx([1, 1, 1])


def test_without_any_error_relative_areas_are_undefined():
    target = np.full((2, 2), 3.0)
    found = uncertainty.compute(np.eye(2), target, target, np.ones((2, 2), bool))
    assert found == ({"spread": 0.5, "ause": 0.0}, {})


def test_bad_input_is_refused():
    spread, prediction, target, valid_mask = frame(0)
    with pytest.raises(ValueError, match="no pixel is valid"):
        uncertainty.compute(spread, prediction, target, np.zeros_like(valid_mask))
    for wrong in (np.nan, -1.0, np.inf):
        with pytest.raises(ValueError, match="negative or not finite"):
            uncertainty.compute(spread * wrong, prediction, target, valid_mask)
        uncertainty.compute(np.where(valid_mask, spread, wrong), prediction, target, valid_mask)
