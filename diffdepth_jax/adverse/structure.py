"""Whether a generated image still shows the label's structure, as the teacher sees it.

The teacher predicts the depth of the generated image; two numbers compare it with the label. Both
ignore scale and shift, so that a teacher whose depth drifts with the light is not mistaken for a
generator that has moved a car. They also suffer if the teacher itself fails in the condition: they
are an upper bound on the damage, and rank images of one condition under one teacher.

`abs_rel`: |aligned - label| / label, averaged over the label's valid pixels. The alignment is the
least squares fit of scale and shift: in depth for a metric teacher, in disparity for a relative one
(`evaluation.protocols.alignment`). Where the label is a relative disparity too, it has no metres:
its range is mapped to disparities from 0.1 to 1, and errors are those of the corresponding depths
from 1 to 10 (our convention).

`edge_agreement`: the share of depth edges that the two have in common, 0 to 1 (F1 of precision and
recall, with a tolerance of 0.5% of the diagonal, by which both are smoothed first). Edges are the
5% of the pixels where log depth jumps most: a fixed share, unlike a threshold, does not depend on
how sharp a teacher is. Unrelated maps agree by chance too: for the exact depth of two frames of the
committed sample the median over pairs is 0.16.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from diffdepth_jax.evaluation.protocols import alignment
from diffdepth_jax.typing import Output

_EDGE_SHARE = 0.05  # of the pixels
_TOLERANCE = 0.005  # of the diagonal
_DENSE = 0.25  # share of known pixels that a label needs for edges to be computed
_FARTHEST = 0.1  # disparity of the farthest pixel of a relative label; the nearest has 1


@dataclasses.dataclass(frozen=True)
class Structure:
    """How well a generated image's depth agrees with the label.

    Attributes:
      abs_rel: 0 for the same depth, up to scale and shift.
      edge_agreement: 1 for the same edges; None where the label is too sparse to have any.
    """

    abs_rel: float
    edge_agreement: float | None


def compare(
    prediction: np.ndarray,
    label: np.ndarray,
    *,
    prediction_is: Output,
    label_is: Output,
) -> Structure | None:
    """Compares the teacher's depth of a generated image with the label.

    Args:
      prediction: float [h, w].
      label: float [h, w]; metres with 0 where unknown, or relative disparity.
      prediction_is, label_is: what their numbers mean.

    Returns:
      None where fewer than two pixels of the label are valid.
    """
    valid = np.isfinite(label) & ((label > 0) | (label_is == "relative_disparity"))
    if valid.sum() < 2 or (np.isfinite(prediction) & valid).sum() < 2:
        return None
    if label_is == "relative_disparity":
        low, high = (float(end(label[valid])) for end in (np.min, np.max))
        share = (label - low) / (high - low) if high > low else np.ones_like(label)
        disparity = _FARTHEST + (1 - _FARTHEST) * share
        label = 1 / np.where(valid, disparity, 1)
        floor = _FARTHEST
    else:
        floor = 1e-3
    if prediction_is == "relative_disparity":
        aligned = alignment.lsq_disparity(prediction, label, valid, floor=floor)
    else:
        aligned = alignment.lsq_depth(prediction, label, valid)
    error = np.abs(aligned - label)[valid] / label[valid]
    return Structure(float(np.nanmean(error)), _edge_agreement(aligned, label, valid))


def _edge_agreement(prediction: np.ndarray, label: np.ndarray, valid: np.ndarray) -> float | None:
    if valid.mean() < _DENSE:
        return None
    radius = max(1.0, _TOLERANCE * float(np.hypot(*label.shape)))
    # The same mask for both; otherwise the borders of unknown areas would count as edges.
    usable = ndimage.binary_erosion(valid & np.isfinite(prediction), iterations=round(2 * radius))
    found, wanted = (_edges(depth, usable, radius) for depth in (prediction, label))
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    precision = (ndimage.distance_transform_edt(~wanted)[found] <= radius).mean()
    recall = (ndimage.distance_transform_edt(~found)[wanted] <= radius).mean()
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def _edges(depth: np.ndarray, usable: np.ndarray, radius: float) -> np.ndarray:
    """The pixels where smoothed log depth jumps most."""
    positive = depth[usable & (depth > 0)]
    if not positive.size:
        return np.zeros(depth.shape, bool)
    logarithm = np.log(np.where(usable, np.maximum(depth, positive.min()), 1.0))
    # Networks leave pixel patterns that are the same in all images.
    weight = ndimage.gaussian_filter(usable.astype(np.float64), radius)
    logarithm = ndimage.gaussian_filter(logarithm, radius) / np.maximum(weight, 1e-6)
    rows, columns = np.gradient(logarithm)
    jump = np.where(usable, np.hypot(rows, columns), 0.0)
    # A flat map has no edges, only rounding noise.
    threshold = max(float(np.quantile(jump[usable], 1 - _EDGE_SHARE)), 1e-6)
    return jump > threshold
