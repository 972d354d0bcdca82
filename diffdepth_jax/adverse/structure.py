"""Whether a generated image still has the label's structure, according to the teacher.

The teacher predicts depth for the generated image, and two scores compare it with the label. Both
ignore scale and shift, so that a teacher whose depth drifts with the light is not mistaken for a
generator that moved a car. They also get worse if the teacher itself fails in the condition: they
are an upper bound on the damage, and rank images of one condition for one teacher.

`abs_rel`: |aligned - label| / label, averaged over the label's valid pixels. Scale and shift are
aligned by least squares: in depth for a metric teacher, in disparity for a relative one
(`evaluation.protocols.alignment`). A label that is relative disparity has no metres: its range is
mapped to disparities from 0.1 to 1, and errors are computed for the corresponding depths from 1 to
10 (our convention).

`edge_agreement`: how well depth edges agree, 0 to 1 (F1 of precision and recall, with a tolerance
of 0.5% of the diagonal, by which both maps are smoothed first). Edges are the 5% of pixels with the
largest jumps in log depth: unlike a threshold, a fixed fraction does not depend on the teacher's
sharpness. Unrelated maps also agree by chance: for exact depth of two different frames of the
included sample, the median over pairs is 0.16.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from diffdepth_jax.evaluation.protocols import alignment
from diffdepth_jax.typing import Output

_EDGE_SHARE = 0.05  # of the pixels
_TOLERANCE = 0.005  # of the diagonal
_DENSE = 0.25  # minimum fraction of known pixels in a label for computing edges
_FARTHEST = 0.1  # disparity of the farthest pixel of a relative label; the nearest has 1


@dataclasses.dataclass(frozen=True)
class Structure:
    """How well a generated image's depth agrees with the label.

    Attributes:
        abs_rel: 0 for equal depth up to scale and shift.
        edge_agreement: 1 for equal edges; None if the label is too sparse to have edges.
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
    """Compares the teacher's depth for a generated image with the label.

    Args:
        prediction: float [h, w].
        label: float [h, w]; metres with 0 where unknown, or relative disparity.
        prediction_is, label_is: what the two contain.

    Returns:
        None if fewer than two pixels of the label are valid.
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
    # The same mask for both, as the borders of unknown areas would otherwise count as edges.
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
    # Networks produce pixel patterns that are equal in all images.
    weight = ndimage.gaussian_filter(usable.astype(np.float64), radius)
    logarithm = ndimage.gaussian_filter(logarithm, radius) / np.maximum(weight, 1e-6)
    rows, columns = np.gradient(logarithm)
    jump = np.where(usable, np.hypot(rows, columns), 0.0)
    # A constant map has no edges, only rounding noise.
    threshold = max(float(np.quantile(jump[usable], 1 - _EDGE_SHARE)), 1e-6)
    return jump > threshold
