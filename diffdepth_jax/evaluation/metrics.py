"""Depth metrics of one image, in float64 (see `boundary` for edges, `uncertainty` for spread).

The usual conventions apply (Eigen et al. 2014; the KITTI depth devkit; the public evaluation code
of Marigold and BTS): every metric is a mean over an image's valid pixels, and a data set's result
is the mean over its images. Pooling all pixels of a data set gives different numbers and is not
supported.
"""

import numpy as np
from jaxtyping import Bool, Float

METRICS = (
    "abs_rel",
    "sq_rel",
    "rmse",
    "rmse_log",
    "log10",
    "silog",
    "delta1",
    "delta2",
    "delta3",
    "delta_1.05",
    "delta_1.10",
    "delta_1.15",
    "mae",
    "irmse",
    "imae",
    "sq_error_rel",
)

# The sets of metrics that protocols use: all; those printed by the KITTI depth devkit; those
# printed by the evaluation of transparent and mirror objects (Depth4ToM).
SETS = {
    "all": METRICS,
    "kitti_benchmark": ("silog", "sq_error_rel", "abs_error_rel", "irmse"),
    "millimetres": ("mae_mm", "abs_rel", "rmse_mm", "delta1", "delta_1.15", "delta_1.05"),
}
_THRESHOLDS = {
    "delta1": 1.25,
    "delta2": 1.25**2,
    "delta3": 1.25**3,
    "delta_1.05": 1.05,
    "delta_1.10": 1.10,
    "delta_1.15": 1.15,
}

LARGER_IS_BETTER = frozenset(_THRESHOLDS)  # of all others, errors, smaller is

# Without a cap, predictions are still clipped here: at the largest depth (in whole metres) that
# DiffusionDepth's decoder, 1 / max(s, 1e-6) - 1, can produce. So +inf makes metrics bad, not
# infinite.
FARTHEST = 1e6


def valid_pixels(
    target: Float[np.ndarray, "*shape"], min_depth: float | int, max_depth: float | int
) -> Bool[np.ndarray, "*shape"]:
    """Where ground truth is valid: min_depth < target < max_depth, both strict (NaN is never
    valid)."""
    return (target > min_depth) & (target < max_depth)


def clip(
    prediction: Float[np.ndarray, "*shape"], min_depth: float | int, max_depth: float | int
) -> Float[np.ndarray, "*shape"]:
    """The prediction in float64, clipped to [min_depth, max_depth], or to `FARTHEST` without a cap.

    NaN and -inf become the lower bound, +inf the upper one.
    """
    highest = min(max_depth, FARTHEST)
    prediction = np.where(np.isnan(prediction), min_depth, prediction.astype(np.float64))
    return np.clip(prediction, min_depth, highest)


def compute(
    prediction: Float[np.ndarray, "h w"],
    target: Float[np.ndarray, "h w"],
    valid_mask: Bool[np.ndarray, "h w"],
    names: tuple[str, ...] = METRICS,
) -> dict[str, float]:
    """The metrics of one image over its valid pixels.

    With d = prediction - target in metres and e = ln prediction - ln target:

      abs_rel       mean |d| / target
      sq_rel        mean d^2 / target, metres
      rmse, mae     sqrt(mean d^2), mean |d|, metres
      rmse_log      sqrt(mean e^2)
      log10         mean |log10 prediction - log10 target|
      silog         100 sqrt(mean e^2 - (mean e)^2)
      delta1..3     fraction of pixels with max(prediction / target, target / prediction) < 1.25^n
      delta_1.05..  the same, for the ratio in the name
      irmse, imae   of inverse depth, 1/km
      sq_error_rel  100 mean d^2 / target^2, the devkit's sqErrorRel in percent
      abs_error_rel 100 abs_rel, the devkit's absErrorRel in percent
      mae_mm, rmse_mm  mae and rmse in millimetres

    Args:
        prediction: metres, positive and finite where valid (see `clip`).
        target: metres, positive and finite where valid.
        valid_mask: the pixels to score.
        names: which metrics, in which order.

    Raises:
        ValueError: if no pixel is valid, or depth is not positive and finite at a valid pixel.
    """
    prediction = prediction[valid_mask].astype(np.float64)
    target = target[valid_mask].astype(np.float64)
    if prediction.size == 0:
        raise ValueError("no pixel is valid: skip this image, as it has no metrics")
    for name, depth in (("prediction", prediction), ("target", target)):
        wrong = ~((depth > 0) & np.isfinite(depth))
        if wrong.any():
            raise ValueError(
                f"the {name} is {depth[wrong][0]} at a valid pixel ({wrong.sum()} in total); "
                "metrics need positive, finite depth: clip it first"
            )

    difference = prediction - target
    log_difference = np.log(prediction) - np.log(target)
    inverse_difference = 1000 / prediction - 1000 / target
    ratio = np.maximum(prediction / target, target / prediction)
    results = {
        "abs_rel": np.mean(np.abs(difference) / target),
        "sq_rel": np.mean(difference**2 / target),
        "rmse": np.sqrt(np.mean(difference**2)),
        "rmse_log": np.sqrt(np.mean(log_difference**2)),
        "log10": np.mean(np.abs(np.log10(prediction) - np.log10(target))),
        # mean e^2 - (mean e)^2 is the variance, which NumPy computes without cancellation.
        "silog": 100 * np.std(log_difference),
        "mae": np.mean(np.abs(difference)),
        "irmse": np.sqrt(np.mean(inverse_difference**2)),
        "imae": np.mean(np.abs(inverse_difference)),
        "sq_error_rel": 100 * np.mean((difference / target) ** 2),
    }
    results |= {name: np.mean(ratio < threshold) for name, threshold in _THRESHOLDS.items()}
    results["abs_error_rel"] = 100 * results["abs_rel"]
    results |= {f"{name}_mm": 1000 * results[name] for name in ("mae", "rmse")}
    return {name: float(results[name]) for name in names}
