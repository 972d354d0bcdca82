"""Resampling and padding of NHWC maps with PyTorch's arithmetic.

Both resamplings are linear and separable, so each axis is one small matrix, made in NumPy float64
at trace time: the gradient is a matrix product too, where a gather would give a scatter.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def resize_bilinear(features: Float[Array, "b h w c"], size: tuple[int, int]) -> Array:
    """Bilinear resize with aligned corners (`interpolate(..., align_corners=True)`).

    Args:
        features: [b, h, w, c].
        size: (height, width) of the result, larger or smaller.

    Returns:
        [b, height, width, c]; `features` itself where the size is its own.
    """
    return _resample(features, size, _bilinear_matrix)


def adaptive_average_pool(features: Float[Array, "b h w c"], size: tuple[int, int]) -> Array:
    """Mean over windows [floor(i * in / out), ceil((i + 1) * in / out)) (`adaptive_avg_pool2d`).

    Args:
        features: [b, h, w, c].
        size: (height, width) of the result; windows overlap where they do not divide the input.

    Returns:
        [b, height, width, c]; `features` itself where the size is its own.
    """
    return _resample(features, size, _pooling_matrix)


def pad_to_multiple(image: Float[Array, "b h w c"], multiple: int) -> Array:
    """Repeats the last row and column until height and width are multiples of `multiple`.

    Padding is at the bottom and right only, so cropping to the old size undoes it.
    """
    _, height, width, _ = image.shape
    amounts = ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0))
    return jnp.pad(image, amounts, mode="edge")


def _resample(features: Array, size: tuple[int, int], matrix) -> Array:
    for axis, output in zip((1, 2), size, strict=True):
        if features.shape[axis] != output:
            weights = jnp.asarray(matrix(features.shape[axis], output), features.dtype)
            # On accelerators a product at default precision would keep 8 to 11 bits.
            subscripts = "oh,bhwc->bowc" if axis == 1 else "ow,bhwc->bhoc"
            features = jnp.einsum(subscripts, weights, features, precision=lax.Precision.HIGHEST)
    return features


def _bilinear_matrix(length: int, output: int) -> np.ndarray:
    position = np.arange(output) * ((length - 1) / (output - 1) if output > 1 else 0.0)
    # Hat functions: 1 at the sample itself, falling to 0 at its neighbours.
    return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(length)[None, :]))


def _pooling_matrix(length: int, output: int) -> np.ndarray:
    index = np.arange(output)
    start, stop = index * length // output, -(-(index + 1) * length // output)
    column = np.arange(length)[None, :]
    inside = (column >= start[:, None]) & (column < stop[:, None])
    return inside / inside.sum(1, keepdims=True)
