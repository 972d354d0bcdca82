"""Whether the spread of several samples shows where a prediction is wrong.

Only the order of a spread counts: the pixels where it is large should be those with large errors.
The rank correlation measures how far that holds. Sparsification (Ilg et al. 2018,
arXiv:1802.07095; for monocular depth Poggi et al. 2020, arXiv:2005.06209) removes more and more
pixels, the most uncertain first, and plots the mean error of the rest; the oracle removes the
largest errors first, and the area between the two curves (AUSE) is 0 for a spread that orders
pixels as their errors do.

Depth itself is a control for every spread: far pixels have large errors in metres, so "far is
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
# Shares of removed pixels at which curves are kept.
REMOVED = tuple(np.linspace(0, 0.95, 20).round(2).tolist())
CURVES = ("spread", "oracle", "depth")


class Uncertainty(NamedTuple):
    """Of one image.

    Attributes:
      metrics: by the names of `METRICS`, as far as they are defined.
      curves: by the names of `CURVES`: the mean error of the pixels that remain at `REMOVED`, as a
        share of the mean error of all; empty where there is no error.
    """

    metrics: dict[str, float]
    curves: dict[str, list[float]]


def compute(
    spread: Float[np.ndarray, "h w"],
    prediction: Float[np.ndarray, "h w"],
    target: Float[np.ndarray, "h w"],
    valid_mask: Bool[np.ndarray, "h w"],
) -> Uncertainty:
    """How well a spread predicts the absolute errors of one image's valid pixels.

      spread                  its mean, in its own unit
      rank_correlation        Spearman's, of spread and absolute error
      ause                    area between the curve by spread and the oracle's, metres
      ause_rel                the same as a share of the image's mean error
      ause_rel_random         that of a random order: the bar to stay below
      rank_correlation_depth,
      ause_rel_depth          of the predicted depth in place of the spread: the control
      rank_correlation_relative
                              of spread / prediction and absolute error / target, where depth is no
                              longer a hint

    Args:
      spread: of the samples, 0 or more, larger where the model is less sure.
      prediction, target: metres, positive where valid.
      valid_mask: the pixels that count.

    Returns:
      Without correlations of a constant, and without shares of an error of 0.

    Raises:
      ValueError: if no pixel is valid, or a spread is negative or not finite at a valid one.
    """
    if not valid_mask.any():
        raise ValueError("no pixel is valid: uncertainty cannot be measured on this image")
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
    defined = {name: found[name] for name in METRICS if found.get(name) is not None}
    return Uncertainty(defined, curves)


def rank_correlation(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]
) -> float | None:
    """Spearman's: the correlation of the ranks, equal values sharing their mean rank.

    Returns:
      From -1 to 1; None where all values of one of the two are equal.
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

    Pixels that are equally uncertain may be left out in any order; the curve is the mean over these
    orders. AUSE is the mean of the differences of two such curves; the oracle's is that of the
    error itself.

    Args:
      uncertainty: only its order counts.
      error: 0 or more.
    """
    _, places, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    means = np.bincount(places, weights=error) / counts
    kept = np.repeat(means, counts)
    return np.cumsum(kept) / np.arange(1, kept.size + 1)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
