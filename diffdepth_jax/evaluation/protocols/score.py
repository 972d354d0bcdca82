"""The score of one image, and measures in addition to a protocol's metrics."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation import boundary, uncertainty


@dataclasses.dataclass(frozen=True)
class Score:
    """One image's result.

    Attributes:
      num_valid: pixels that count.
      num_nonfinite: how many of them were predicted as NaN or infinite.
      num_clipped: how many more lay outside the protocol's range and were clipped to it.
      num_zero: pixels of the whole prediction, as it was given, that are 0: in files of the KITTI
        benchmark, where nothing was predicted. Always 0 for disparity.
      mean_depth: of the ground truth over the pixels that count, metres; NaN if there are none.
      metrics: the protocol's, and those of `measure`; empty where no pixel counts.
      classes: the protocol's over the pixels of each class that the image has, where it
        distinguishes classes.
      curves: of the spread of samples, see `uncertainty.Uncertainty`; empty without.
    """

    num_valid: int
    num_nonfinite: int
    num_clipped: int
    mean_depth: float
    metrics: Mapping[str, float]
    classes: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    num_zero: int = 0
    curves: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A prediction and its ground truth as they are compared, all [h, w] of the scored frame.

    Attributes:
      prediction: float64, metres, aligned and clipped.
      target: metres.
      valid_mask: the pixels that count.
      num_nonfinite, num_clipped, num_zero: as in `Score`.
      classes: the pixels of each class, of those that count.
      spread: of samples whose mean the prediction is, metres; None for a single prediction, NaN
        where there was none.
    """

    prediction: np.ndarray
    target: np.ndarray
    valid_mask: np.ndarray
    num_nonfinite: int
    num_clipped: int
    num_zero: int
    classes: Mapping[str, np.ndarray]
    spread: np.ndarray | None = None


# In this order; which of them are defined depends on the image.
MEASURES = (*boundary.METRICS, *uncertainty.METRICS)


def measure(
    comparison: Comparison, with_boundary: bool
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Measures in addition to a protocol's metrics, which do not depend on them.

    Args:
      comparison: a prediction with a spread has its uncertainty measured.
      with_boundary: measure occluding contours too.

    Returns:
      Metrics by a name of `MEASURES`, and the curves of `uncertainty.compute`.

    Raises:
      DataError: for contours of depth that is not dense.
    """
    found: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    arrays = comparison.prediction, comparison.target
    if with_boundary:
        check_dense(comparison.valid_mask)
        found |= boundary.compute(*arrays, comparison.valid_mask)
    if comparison.spread is not None:
        valid_mask = comparison.valid_mask & np.isfinite(comparison.spread)
        if valid_mask.any():
            of_spread = uncertainty.compute(comparison.spread, *arrays, valid_mask)
            found |= of_spread.metrics
            curves = of_spread.curves
    return found, curves


def check_dense(valid_mask: np.ndarray) -> None:
    """Raises DataError unless contours can be found between the pixels that count."""
    if not boundary.is_dense(valid_mask):
        raise DataError(
            "the boundary metrics need dense, exact ground truth, such as rendered depth: here "
            "too many pixels have no neighbour with ground truth; leave out "
            "evaluation.boundary (--boundary)"
        )
