"""Whether the spread of several samples shows where a prediction is wrong.

Only the order of the spread matters: pixels with a large spread should be those with large errors.
The rank correlation measures this. Sparsification (Ilg et al. 2018, arXiv:1802.07095; for monocular
depth, Poggi et al. 2020, arXiv:2005.06209) removes pixels, most uncertain first, and plots the mean
error of the rest; the oracle removes the largest errors first, and the area between the two curves
(AUSE) is 0 if the spread orders pixels like their errors.

Depth itself is a control for any spread: far pixels have large errors in metres, so "far is
uncertain" is a useful guess without any samples.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

METRICS = (
    "spread",
    "rank_correlation",
    "ause",
    "ause_rel",
    "ause_rel_random",
    "rank_correlation_depth",
    "ause_rel_depth",
    "rank_correlation_relative",
)
# Fractions of removed pixels at which curves are stored.
REMOVED = tuple(np.linspace(0, 0.95, 20).round(2).tolist())
CURVES = ("spread", "oracle", "depth")


class Uncertainty(NamedTuple):
    """Of one image.

    Attributes:
        metrics: values by the names in `METRICS`, as far as they are defined.
        curves: by the names in `CURVES`, the mean error of the remaining pixels at `REMOVED`,
            relative to the mean error of all; empty if there is no error.
    """

    metrics: dict[str, float]
    curves: dict[str, list[float]]


def compute(
    spread: Float[np.ndarray, "h w"],
    prediction: Float[np.ndarray, "h w"],
    target: Float[np.ndarray, "h w"],
    valid_mask: Bool[np.ndarray, "h w"],
) -> Uncertainty:
    """How well the spread predicts the absolute errors of an image's valid pixels.

        spread                  mean spread, in its own unit
        rank_correlation        Spearman's, between spread and absolute error
        ause                    area between the curves by spread and by oracle, metres
        ause_rel                the same, relative to the image's mean error
        ause_rel_random         that of a random order, as an upper reference
        rank_correlation_depth,
        ause_rel_depth          for predicted depth instead of the spread, as a control
        rank_correlation_relative
                                of spread / prediction and absolute error / target, where depth is
                                no longer a hint

    Args:
        spread: spread of the samples, 0 or more, larger where the model is less certain.
        prediction, target: metres, positive where valid.
        valid_mask: the pixels to score.

    Returns:
        The metrics, without correlations if a value is constant, and without ratios if the error is
        0.

    Raises:
        ValueError: if no pixel is valid, or the spread is negative or non-finite at a valid pixel.
    """
    if not valid_mask.any():
        raise ValueError("no pixel is valid, so uncertainty cannot be measured on this image")
    spread, prediction, target = (
        array[valid_mask].astype(np.float64) for array in (spread, prediction, target)
    )
    if not (np.isfinite(spread) & (spread >= 0)).all():
        raise ValueError("the spread is negative or not finite at a valid pixel")
    error = np.abs(prediction - target)
    mean = float(error.mean())
    oracle = sparsification(error, error)
    by = {"spread": sparsification(spread, error), "depth": sparsification(prediction, error)}
    area = {name: float(np.mean(curve - oracle)) for name, curve in by.items()}
    found = {
        "spread": float(spread.mean()),
        "rank_correlation": rank_correlation(spread, error),
        "ause": area["spread"],
        "rank_correlation_depth": rank_correlation(prediction, error),
        "rank_correlation_relative": rank_correlation(spread / prediction, error / target),
    }
    curves = {}
    if mean > 0:
        found["ause_rel"] = area["spread"] / mean
        found["ause_rel_random"] = float(1 - oracle.mean() / mean)
        found["ause_rel_depth"] = area["depth"] / mean
        left = np.ceil((1 - np.array(REMOVED)) * error.size - 1e-9).astype(int)
        by["oracle"] = oracle
        curves = {name: (by[name][left - 1] / mean).tolist() for name in CURVES}
    defined = {name: value for name in METRICS if (value := found.get(name)) is not None}
    return Uncertainty(defined, curves)


def rank_correlation(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]
) -> float | None:
    """Spearman's rank correlation; equal values share their mean rank.

    Returns:
        From -1 to 1; None if all values of one of the two are equal.
    """
    ranks = [_ranks(values) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    norms = [float(np.sqrt(each @ each)) for each in centred]
    if not all(norms):
        return None
    return float(centred[0] @ centred[1] / (norms[0] * norms[1]))


def sparsification(
    uncertainty: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The mean error of the k most certain pixels, for k = 1 to n.

    Equally uncertain pixels may be removed in any order; the curve is the mean over these orders.
    AUSE is the mean difference between two such curves; the oracle's uses the error itself.

    Args:
        uncertainty: only its order matters.
        error: 0 or more.
    """
    _, places, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    means = np.bincount(places, weights=error) / counts
    kept = np.repeat(means, counts)
    return np.cumsum(kept) / np.arange(1, kept.size + 1)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
