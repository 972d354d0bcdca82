import math

import numpy as np
import pytest

from diffdepth_jax.evaluation import metrics

ALL = tuple(dict.fromkeys(name for names in metrics.SETS.values() for name in names))


def literal(prediction, target, min_depth, max_depth):
    """The definitions, pixel by pixel in plain Python; None where no pixel is valid."""
    pairs = []
    for p, g in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True):
        if not (g > min_depth and g < max_depth):
            continue
        if math.isnan(p) or p == -math.inf:
            p = min_depth
        if p == math.inf:
            p = max_depth
        pairs.append((min(max(p, min_depth), max_depth), g))
    if not pairs:
        return None
    n = len(pairs)

    def mean(values):
        return math.fsum(values) / n

    e = [math.log(p) - math.log(g) for p, g in pairs]
    result = {
        "abs_rel": mean(abs(p - g) / g for p, g in pairs),
        "sq_rel": mean((p - g) ** 2 / g for p, g in pairs),
        "rmse": math.sqrt(mean((p - g) ** 2 for p, g in pairs)),
        "rmse_log": math.sqrt(mean(x * x for x in e)),
        "log10": mean(abs(math.log10(p) - math.log10(g)) for p, g in pairs),
        "silog": 100 * math.sqrt(mean(x * x for x in e) - mean(e) ** 2),
        "mae": mean(abs(p - g) for p, g in pairs),
        "irmse": 1000 * math.sqrt(mean((1 / p - 1 / g) ** 2 for p, g in pairs)),
        "imae": 1000 * mean(abs(1 / p - 1 / g) for p, g in pairs),
        "sq_error_rel": 100 * mean((p - g) ** 2 / g**2 for p, g in pairs),
    }
    for name, threshold in {
        "delta1": 1.25,
        "delta2": 1.25**2,
        "delta3": 1.25**3,
        "delta_1.05": 1.05,
        "delta_1.10": 1.10,
        "delta_1.15": 1.15,
    }.items():
        result[name] = mean(max(p / g, g / p) < threshold for p, g in pairs)
    result["abs_error_rel"] = 100 * mean(abs(p - g) / g for p, g in pairs)
    result["mae_mm"] = mean(abs(1000 * p - 1000 * g) for p, g in pairs)
    result["rmse_mm"] = math.sqrt(mean((1000 * p - 1000 * g) ** 2 for p, g in pairs))
    return result


def by_package(prediction, target, min_depth, max_depth):
    mask = metrics.valid_pixels(target, min_depth, max_depth)
    clipped = metrics.clip(prediction, min_depth, max_depth)
    return metrics.compute(clipped, target, mask, ALL)


def frame(seed, dtype=np.float64):
    generator = np.random.default_rng(seed)
    target = np.exp(generator.uniform(-2, 5, (17, 23)))
    target[generator.random(target.shape) < 0.6] = 0
    prediction = target * np.exp(generator.normal(0, 0.3, target.shape))
    return prediction.astype(dtype), target.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("max_depth", [80.0, 3.0, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_the_literal_definitions(seed, max_depth, dtype):
    prediction, target = frame(seed, dtype)
    expected = literal(prediction, target, 1e-3, max_depth)
    result = by_package(prediction, target, 1e-3, max_depth)
    assert set(result) == set(ALL) == set(expected)
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


def test_zeros_infinities_and_nans_in_predictions_are_clipped():
    prediction, target = frame(0)
    for index, value in enumerate([0.0, -3.0, np.nan, np.inf, -np.inf, 1e30]):
        prediction[target > 0] = np.where(
            np.arange((target > 0).sum()) % 6 == index, value, prediction[target > 0]
        )
    expected = literal(prediction, target, 1e-3, 80.0)
    result = by_package(prediction, target, 1e-3, 80.0)
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    assert all(map(math.isfinite, result.values()))


def test_without_a_cap_infinity_counts_as_the_farthest_depth():
    clipped = metrics.clip(np.array([np.inf, -np.inf, np.nan, 300.0]), 1e-4, math.inf)
    np.testing.assert_array_equal(clipped, [metrics.FARTHEST, 1e-4, 1e-4, 300.0])


def test_ground_truth_is_valid_strictly_inside_the_range():
    target = np.array([[0, 1e-3, 1.1e-3, 79.99, 80, 81, np.nan, np.inf, -1]])
    for dtype in (np.float64, np.float32):
        mask = metrics.valid_pixels(target.astype(dtype), 1e-3, 80.0)
        assert np.flatnonzero(mask).tolist() == [2, 3]
    assert not metrics.valid_pixels(np.array([[np.inf]]), 1e-4, math.inf).any()


def real_pairs(shared):
    """Two ground truths of one data set, one as a prediction of the other."""
    from diffdepth_jax.data import io

    kitti = shared / "data/kitti_depth/val/2011_09_26_drive_9999_sync/proj_depth/groundtruth"
    nyu = shared / "data/nyu_depth_v2/sync/basement_0001a"
    grasp = shared / "data/cleargrasp/real-val/d435"
    yield (
        "kitti",
        [
            io.read_depth_png(kitti / f"image_02/{name}.png")[150:250, 300:700]
            for name in ("0000000005", "0000000050")
        ],
    )
    yield (
        "nyu",
        [
            io.read_depth_png(nyu / f"sync_depth_{name}.png", 1000)[::6, ::6]
            for name in ("00000", "00050")
        ],
    )
    yield (
        "cleargrasp",
        [
            io.read_exr(grasp / f"{name}-opaque-depth-img.exr")[::10, ::10]
            for name in ("000000123", "000000130")
        ],
    )


def test_metrics_of_real_frames(shared):
    for dataset, (prediction, target) in real_pairs(shared):
        # Holes (0, or NaN in ClearGrasp) in the prediction count as the nearest depth.
        assert not (np.nan_to_num(prediction) > 0).all(), dataset
        expected = literal(prediction, target, 1e-3, 80.0)
        result = by_package(prediction, target, 1e-3, 80.0)
        for name, value in expected.items():
            assert result[name] == pytest.approx(value, rel=1e-9, abs=1e-9), (dataset, name)


def test_sets_choose_and_order_metrics():
    prediction, target = frame(3)
    mask = metrics.valid_pixels(target, 1e-3, 80.0)
    for names in metrics.SETS.values():
        assert tuple(metrics.compute(metrics.clip(prediction, 1, 80), target, mask, names)) == names


def test_a_perfect_and_a_scaled_prediction():
    _, target = frame(1)
    perfect = by_package(target, target, 1e-3, 1e6)
    errors = {name: value for name, value in perfect.items() if not name.startswith("delta")}
    assert set(errors.values()) == {0.0}
    assert {value for name, value in perfect.items() if name not in errors} == {1.0}
    scaled = by_package(target * 1.2, target, 1e-3, 1e6)
    assert scaled["abs_rel"] == pytest.approx(0.2)
    assert scaled["silog"] == pytest.approx(0, abs=1e-10)
    assert scaled["delta1"] == 1 and scaled["delta_1.15"] == 0


def test_an_empty_mask_is_an_error():
    ones = np.ones((2, 2))
    with pytest.raises(ValueError, match="no pixel is valid"):
        metrics.compute(ones, ones, np.zeros((2, 2), bool))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_depths_without_a_logarithm_are_an_error(value):
    ones, mask = np.ones((2, 2)), np.ones((2, 2), bool)
    wrong = ones.copy()
    wrong[0, 1] = value
    with pytest.raises(ValueError, match="the prediction is"):
        metrics.compute(wrong, ones, mask)
    with pytest.raises(ValueError, match="the target is"):
        metrics.compute(ones, wrong, mask)
    mask[0, 1] = False
    assert metrics.compute(wrong, ones, mask)["abs_rel"] == 0


@pytest.mark.parametrize("name", dict.fromkeys(name for s in metrics.SETS.values() for name in s))
def test_a_perfect_prediction_is_best_in_the_direction_of_the_metric(name):
    target = np.linspace(2.0, 50.0, 12).reshape(3, 4)
    worse = target * np.linspace(0.3, 3.0, 12).reshape(3, 4)
    perfect, poor = (
        metrics.compute(each, target, np.ones((3, 4), bool), (name,))[name]
        for each in (target, worse)
    )
    best = max if name in metrics.LARGER_IS_BETTER else min
    assert best(perfect, poor) == perfect != poor
