"""The score of one image, and measures besides a protocol's metrics."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation import boundary, uncertainty


@dataclasses.dataclass(frozen=True)
class Score:
    """One image's result.

    Attributes:
        num_valid: number of scored pixels.
        num_nonfinite: number of these predicted as NaN or infinite.
        num_clipped: number of other predictions outside the protocol's range, which were clipped.
        num_zero: number of pixels that are 0 in the whole original prediction, which in KITTI
            benchmark files means no prediction. Always 0 for disparity.
        mean_depth: mean ground truth over the scored pixels, metres; NaN if there are none.
        metrics: the protocol's metrics and those of `measure`; empty if no pixel is scored.
        classes: the protocol's metrics for each class in the image, if it distinguishes classes.
        curves: curves of the samples' spread, see `uncertainty.Uncertainty`; empty without samples.
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
    """A prediction and its ground truth as compared, all [h, w] of the scored frame.

    Attributes:
        prediction: float64, metres, aligned and clipped.
        target: metres.
        valid_mask: the scored pixels.
        num_nonfinite, num_clipped, num_zero: as in `Score`.
        classes: the scored pixels of each class.
        spread: spread of the samples whose mean is the prediction, metres; None for a single
            prediction, NaN where there is none.
    """

    prediction: np.ndarray
    target: np.ndarray
    valid_mask: np.ndarray
    num_nonfinite: int
    num_clipped: int
    num_zero: int
    classes: Mapping[str, np.ndarray]
    spread: np.ndarray | None = None


# In this order; the image determines which of them are defined.
MEASURES = (*boundary.METRICS, *uncertainty.METRICS)


def measure(
    comparison: Comparison, with_boundary: bool
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Measures besides a protocol's metrics, which they do not affect.

    Args:
        comparison: if the prediction has a spread, its uncertainty is measured.
        with_boundary: also measure occluding contours.

    Returns:
        Metrics by the names in `MEASURES`, and the curves of `uncertainty.compute`.

    Raises:
        DataError: if contours are requested but depth is not dense.
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
    """Raises DataError unless contours can be found between the scored pixels."""
    if not boundary.is_dense(valid_mask):
        raise DataError(
            "the boundary metrics need dense, exact ground truth, such as rendered depth, but too "
            "many pixels have no neighbour with ground truth: leave out evaluation.boundary "
            "(--boundary)"
        )
