"""Aligns relative predictions with the ground truth of the same image.

Each function fits on the valid pixels with finite predictions and applies the fit to the whole map.
Conventions follow MiDaS and Marigold. Except with `none`, results say nothing about metric scale,
so they always state the method.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float

from diffdepth_jax.errors import DataError

DepthMap = Float[np.ndarray, "h w"]
Mask = Bool[np.ndarray, "h w"]


def none(prediction: DepthMap, target: DepthMap, valid_mask: Mask) -> DepthMap:
    """The unchanged prediction, in metres."""
    del target, valid_mask
    return prediction.astype(np.float64)


def median(prediction: DepthMap, target: DepthMap, valid_mask: Mask) -> DepthMap:
    """Scales by median(target) / median(prediction) (Zhou et al. 2017).

    Raises:
        DataError: if the prediction's median is not positive.
    """
    predicted, measured = _pixels(prediction, target, valid_mask, at_least=1)
    centre = np.median(predicted)
    if centre <= 0:
        raise DataError(
            f"median alignment: the prediction's median is {centre}; it must be positive"
        )
    return prediction.astype(np.float64) * (np.median(measured) / centre)


def median_low(prediction: DepthMap, target: DepthMap, valid_mask: Mask) -> DepthMap:
    """Like `median`, but with the lower of the two middle values for an even number.

    This is PyTorch's median, used for md4all's `_gt` results.

    Raises:
        DataError: if the prediction's median is not positive.
    """
    predicted, measured = _pixels(prediction, target, valid_mask, at_least=1)
    middle = (predicted.size - 1) // 2
    centre = np.partition(predicted, middle)[middle]
    if centre <= 0:
        raise DataError(
            f"median alignment: the prediction's lower median is {centre}; it must be positive"
        )
    return prediction.astype(np.float64) * (np.partition(measured, middle)[middle] / centre)


def lsq_depth(prediction: DepthMap, target: DepthMap, valid_mask: Mask) -> DepthMap:
    """scale * prediction + shift with the least squared error in depth (as in Marigold)."""
    scale, shift = _fit(*_pixels(prediction, target, valid_mask, at_least=2))
    return prediction.astype(np.float64) * scale + shift


def lsq_disparity(
    prediction: DepthMap,
    target: DepthMap,
    valid_mask: Mask,
    *,
    floor: float = 1e-3,
    positive_only: bool = False,
) -> DepthMap:
    """Depth from relative disparity, fitted by least squares in 1/depth (as in MiDaS).

    Args:
        prediction: relative disparity, any scale and shift, larger is nearer.
        target: metres.
        floor: minimum aligned disparity, 1/metres; smaller values, including zero and negative
            ones, are raised to it, so that depth is at most 1 / floor.
        positive_only: exclude non-positive predictions from the fit, as in Marigold's evaluation.
    """
    fitted = valid_mask & (prediction > 0) if positive_only else valid_mask
    predicted, measured = _pixels(prediction, target, fitted, at_least=2)
    scale, shift = _fit(predicted, 1 / measured)
    return 1 / np.maximum(prediction.astype(np.float64) * scale + shift, floor)


def lsq_disparity_near(prediction: DepthMap, target: DepthMap, valid_mask: Mask) -> DepthMap:
    """Like `lsq_disparity`, with the rules of Depth4ToM's evaluation on Booster.

    The prediction is min-max normalised over the valid pixels before the fit, and where the aligned
    disparity is not positive, depth is 0 (nearest) instead of the farthest.

    Args:
        prediction: relative disparity, any scale and shift, larger is nearer.
        target: metres. (Booster fits disparity in pixels, which is equivalent, as it is
            proportional to 1/metres within an image.)
    """
    predicted, measured = _pixels(prediction, target, valid_mask, at_least=2)
    low, high = predicted.min(), predicted.max()
    spread = high - low if high > low else 1.0
    scale, shift = _fit((predicted - low) / spread, 1 / measured)
    aligned = (prediction.astype(np.float64) - low) / spread * scale + shift
    behind = aligned <= 0
    return np.where(behind, 0, 1 / np.where(behind, 1, aligned))


def inverse(array: DepthMap) -> DepthMap:
    """Converts depth to inverse depth or back, float64; values below 1e-6 count as 1e-6
    (md4all)."""
    return 1 / np.maximum(array.astype(np.float64), 1e-6)


METHODS: Mapping[str, Callable[..., DepthMap]] = {
    "none": none,
    "median": median,
    "median_low": median_low,
    "lsq_depth": lsq_depth,
    "lsq_disparity": lsq_disparity,
    "lsq_disparity_near": lsq_disparity_near,
}


def _pixels(
    prediction: DepthMap, target: DepthMap, valid_mask: Mask, *, at_least: int
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    usable = valid_mask & np.isfinite(prediction)
    count = int(usable.sum())
    if count < at_least:
        raise DataError(
            f"alignment needs at least {at_least} valid pixels with a finite prediction; there are "
            f"{count}"
        )
    return prediction[usable].astype(np.float64), target[usable].astype(np.float64)


def _fit(
    predicted: Float[np.ndarray, "n"], measured: Float[np.ndarray, "n"]
) -> tuple[float, float]:
    """Least squares scale and shift; a constant prediction gets scale 0."""
    centred = predicted - predicted.mean()
    spread = centred @ centred
    scale = (centred @ measured) / spread if spread > 0 else 0.0
    return float(scale), float(measured.mean() - scale * predicted.mean())
