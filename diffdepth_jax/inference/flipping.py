"""Averages a prediction with that of the mirrored image."""

import numpy as np

from diffdepth_jax.models.networks.network import Output
from diffdepth_jax.typing import FlipAverage

_SMALLEST = 1e-6  # minimum depth and inverse depth before inversion, as in md4all
_BORDER, _RAMP = 0.05, 0.05  # fractions of the width


def average(
    prediction: np.ndarray,
    mirrored: np.ndarray,
    *,
    output: Output = "metric_depth",
    how: FlipAverage = "depth",
) -> np.ndarray:
    """Averages two maps.

    Args:
        prediction: prediction for the image, float [h, w].
        mirrored: prediction for the mirrored image, mirrored back.
        output: what the two maps contain.
        how: `depth` is the plain mean of the maps. `inverse_depth` is the post-processing of
            Monodepth2 (Godard et al. 2017), `_pp` in md4all's tables, on inverse depth: within 1/20
            of the width from the left border only the second map is used, at the right border only
            the first, because networks trained on stereo pairs learn nothing there; over the next
            1/20 the weights change linearly, and in between it is the mean.

    Returns:
        float32 [h, w], of the same kind as the two.
    """
    if how == "depth":
        return (prediction + mirrored) / 2
    maps = prediction, mirrored
    if output == "relative_disparity":
        return _with_ramps(*maps).astype(np.float32)
    return _inverse(_with_ramps(*map(_inverse, maps))).astype(np.float32)


def _with_ramps(disparity: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    position = np.linspace(0, 1, disparity.shape[1])[None, :]
    left = 1 - np.clip((position - _BORDER) / _RAMP, 0, 1)
    right = left[:, ::-1]
    first, second = disparity.astype(np.float64), mirrored.astype(np.float64)
    return right * first + left * second + (1 - left - right) * (first + second) / 2


def _inverse(array: np.ndarray) -> np.ndarray:
    """Converts depth to inverse depth or back, float64; values below 1e-6 count as 1e-6."""
    return 1 / np.maximum(array.astype(np.float64), _SMALLEST)
