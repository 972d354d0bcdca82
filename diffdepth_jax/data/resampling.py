"""Resampling of images and maps as in OpenCV and PyTorch, in float64 NumPy.

Both downscale without antialiasing and replicate edge pixels. Pillow's filters, for 8-bit images,
are supported too.
"""

from typing import Literal

import numpy as np
from PIL import Image

_A = -0.75  # cubic kernel (Keys 1981) of OpenCV and PyTorch
_PILLOW = {"pillow": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def resize(
    array: np.ndarray,
    size: tuple[int, int],
    method: Literal["bilinear", "bicubic", "pillow", "lanczos"],
    *,
    align_corners: bool = False,
) -> np.ndarray:
    """Resizes the first two axes.

    Args:
        array: [h, w] or [h, w, c].
        size: new height and width.
        method: `bilinear`; `bicubic`, which overshoots at edges; or, for uint8 [h, w, 3], Pillow's
            bicubic (`pillow`) or Lanczos (`lanczos`).
        align_corners: whether the centres of corner pixels are aligned; otherwise the image borders
            are (half-pixel centres).

    Returns:
        float64 [*size, ...].
    """
    if method in _PILLOW:
        resized = Image.fromarray(array).resize((size[1], size[0]), _PILLOW[method])
        return np.asarray(resized, np.float64)
    result = np.asarray(array, np.float64)
    for axis, length in enumerate(size):
        if length != result.shape[axis]:
            result = _along(result, axis, length, method, align_corners)
    return result


def _along(
    array: np.ndarray, axis: int, length: int, method: str, align_corners: bool
) -> np.ndarray:
    old = array.shape[axis]
    if align_corners:
        position = np.linspace(0, old - 1, length)
    else:
        position = (np.arange(length) + 0.5) * old / length - 0.5
        if method == "bilinear":
            position = np.clip(position, 0, old - 1)
    low = np.floor(position).astype(int)
    taps = _linear(position - low) if method == "bilinear" else _cubic(position - low)
    shape = [1] * array.ndim
    shape[axis] = length

    def part(offset: int) -> np.ndarray:
        return array.take(np.clip(low + offset, 0, old - 1), axis) * taps[offset].reshape(shape)

    first, *others = taps
    with np.errstate(invalid="ignore"):  # infinite values turn into NaN in their neighbourhood
        result = part(first)
        for offset in others:
            result = result + part(offset)
    return result


def _linear(fraction: np.ndarray) -> dict[int, np.ndarray]:
    return {0: 1 - fraction, 1: fraction}


def _cubic(fraction: np.ndarray) -> dict[int, np.ndarray]:
    def near(distance: np.ndarray) -> np.ndarray:
        return ((_A + 2) * distance - (_A + 3)) * distance**2 + 1

    def far(distance: np.ndarray) -> np.ndarray:
        return ((_A * distance - 5 * _A) * distance + 8 * _A) * distance - 4 * _A

    return {
        -1: far(1 + fraction),
        0: near(fraction),
        1: near(1 - fraction),
        2: far(2 - fraction),
    }
