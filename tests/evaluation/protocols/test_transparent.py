"""Booster and ClearGrasp, against the rules spelled out pixel by pixel."""

import math

import numpy as np
import pytest

from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.protocols import PROTOCOLS

BOOSTER, CLEARGRASP = PROTOCOLS["booster"], PROTOCOLS["cleargrasp"]


@pytest.fixture
def sample():
    generator = np.random.default_rng(0)
    disparity = generator.uniform(40, 900, (24, 32)).astype(np.float32)
    disparity[generator.random(disparity.shape) < 0.3] = 0
    disparity[4, 8] = 5  # farther than 10 m
    intrinsics = np.diag([1500.0, 1500.0, 1.0]).astype(np.float32)
    return {
        "id": "Bathroom",
        "image": np.zeros((24, 32, 3), np.uint8),
        "disparity": disparity,
        "baseline": 0.05,
        "intrinsics": intrinsics,
        "categories": generator.integers(0, 4, (24, 32)).astype(np.uint8),
    }


def literal_booster(prediction, sample):
    """Depth4ToM's evaluation in millimetres, one pixel at a time."""
    focal_length, baseline = 1500 / 4, 50.0
    pixels = []
    for row in range(6):
        for column in range(8):
            disparity = float(sample["disparity"][4 * row, 4 * column]) / 4
            if disparity <= 0 or not 1 < focal_length * baseline / disparity < 10000:
                continue
            category = int(sample["categories"][4 * row, 4 * column])
            pixels.append((float(prediction[row, column]), disparity, category))
    low, high = min(p for p, _, _ in pixels), max(p for p, _, _ in pixels)
    xs = [(p - low) / (high - low) for p, _, _ in pixels]
    ys = [d for _, d, _ in pixels]
    n, sx, sy = len(xs), math.fsum(xs), math.fsum(ys)
    sxx, sxy = math.fsum(x * x for x in xs), math.fsum(x * y for x, y in zip(xs, ys, strict=True))
    scale = (n * sxy - sx * sy) / (n * sxx - sx * sx)
    shift = (sy - scale * sx) / n
    groups = {"All": [], "ToM": [], "Other": []}
    for x, (_, disparity, category) in zip(xs, pixels, strict=True):
        aligned = scale * x + shift
        predicted = focal_length * baseline / aligned if aligned > 0 else 1.0
        pair = (min(max(predicted, 1.0), 10000.0), focal_length * baseline / disparity)
        groups["All"].append(pair)
        groups["ToM" if category in (2, 3) else "Other"].append(pair)
    result = {}
    for name, pairs in groups.items():
        count = len(pairs)
        ratios = [max(p / g, g / p) for p, g in pairs]
        result[name] = {
            "mae_mm": math.fsum(abs(p - g) for p, g in pairs) / count,
            "abs_rel": math.fsum(abs(p - g) / g for p, g in pairs) / count,
            "rmse_mm": math.sqrt(math.fsum((p - g) ** 2 for p, g in pairs) / count),
            "delta1": sum(ratio < 1.25 for ratio in ratios) / count,
            "delta_1.15": sum(ratio < 1.15 for ratio in ratios) / count,
            "delta_1.05": sum(ratio < 1.05 for ratio in ratios) / count,
        }
    return result, len(pixels)


@pytest.mark.parametrize("behind", [False, True])  # a disparity that the fit makes negative
def test_booster_pixel_by_pixel(sample, behind):
    generator = np.random.default_rng(1)
    quarter = sample["disparity"][::4, ::4].astype(np.float64)
    prediction = 3 * quarter / quarter.max() - 1 + generator.normal(0, 0.02, quarter.shape)
    if behind:
        known = np.where(quarter * 0.25 > 375 * 0.05 / 10, quarter, np.inf)
        prediction[np.unravel_index(known.argmin(), known.shape)] = -1.7
    expected, count = literal_booster(prediction, sample)
    score = BOOSTER.score_sample(prediction, sample)
    assert score.num_valid == count
    assert (score.num_clipped > 0) == behind
    for name, ours in {"All": score.metrics, **score.classes}.items():
        for metric, value in expected[name].items():
            assert ours[metric] == pytest.approx(value, rel=1e-9, abs=1e-9), (name, metric)


def test_a_prediction_of_any_size_is_resized_to_the_quarter(sample):
    ramp = np.linspace(1, 2, 32)[None, :].repeat(24, axis=0) ** 5
    # Halfway between pixels 4 k + 1 and 4 k + 2 of the full size.
    quarter = (ramp[:6, 1::4] + ramp[:6, 2::4]) / 2
    full, small = (BOOSTER.score_sample(each, sample) for each in (ramp, quarter))
    assert full.metrics["mae_mm"] == pytest.approx(small.metrics["mae_mm"], rel=1e-9)
    assert BOOSTER.prepare(sample["image"]).shape == (24, 32, 3)


def test_metric_depth_is_inverted_before_the_fit(sample):
    quarter = sample["disparity"][::4, ::4].astype(np.float64)
    depth = 1500 * 0.05 / np.where(quarter > 0, quarter, 1)
    metric = protocols.get("booster", predicts="depth").score_sample(depth, sample)
    assert metric.metrics["mae_mm"] < 1e-6
    assert BOOSTER.score_sample(depth, sample).metrics["mae_mm"] > 1
    assert BOOSTER.options["predicts"] == "disparity"


def test_a_class_that_an_image_lacks_has_no_metrics(sample):
    sample["categories"][:] = 1
    score = BOOSTER.score_sample(sample["disparity"], sample)
    assert set(score.classes) == {"Other"}
    assert score.classes["Other"] == score.metrics


def test_a_sample_of_another_source_is_refused(sample):
    mask = sample["categories"] > 1
    with pytest.raises(ValueError, match="no disparity and no baseline: use this protocol with"):
        BOOSTER.score_sample(np.ones((6, 8)), {"depth": np.ones((6, 8)), "tom_mask": mask})
    with pytest.raises(ValueError, match="has no categories"):
        CLEARGRASP.score_sample(np.ones((6, 8)), {"depth": np.ones((6, 8))})


def test_real_frames_of_cleargrasp_by_class(shared):
    from diffdepth_jax.data.sources import cleargrasp

    source = cleargrasp.source("real-val", shared / "data/cleargrasp")
    for index in range(2):
        sample = source[index]
        depth = sample["depth"]
        guess = np.where(depth > 0, 1 / np.maximum(depth, 0.1), 0.5).astype(np.float64)
        perfect = CLEARGRASP.score_sample(2 * guess + 3, sample)
        assert perfect.metrics["mae_mm"] < 1e-3  # float32 rounding
        guess[sample["tom_mask"]] *= 0.9
        score = CLEARGRASP.score_sample(guess, sample)
        assert score.classes["ToM"]["mae_mm"] > 3 * score.classes["Other"]["mae_mm"] > 0
        valid = (depth > 1e-3) & (depth < 10)
        assert score.num_valid == valid.sum()
        share = (valid & sample["tom_mask"]).sum() / valid.sum()
        mixed = [score.classes[name]["mae_mm"] for name in ("ToM", "Other")]
        assert score.metrics["mae_mm"] == pytest.approx(
            share * mixed[0] + (1 - share) * mixed[1], rel=1e-9
        )
