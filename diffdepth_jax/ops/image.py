"""Resampling and padding of NHWC maps with PyTorch's arithmetic.

All resampling is linear and separable, so each axis uses one matrix, built in NumPy float64 at
trace time. Its transpose gives the gradient.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_SHORT = 128 * 128  # matrix entries; up to this size, a product is as fast as gathering samples
_MAX_TAPS = 8


def size_of(maps: Float[Array, "b h w c"]) -> tuple[int, int]:
    """Height and width."""
    _, height, width, _ = maps.shape
    return height, width


def resize_bilinear(
    features: Float[Array, "b h w c"], size: tuple[int, int], *, align_corners: bool = True
) -> Array:
    """Bilinear resize (`interpolate(..., mode="bilinear")`), without antialiasing.

    Args:
        features: [b, h, w, c].
        size: (height, width) of the result, larger or smaller.
        align_corners: whether the centres of corner pixels are aligned; otherwise the map's borders
            are (half-pixel centres).

    Returns:
        [b, height, width, c]; `features` itself if it already has this size.
    """
    matrix = _bilinear_matrix if align_corners else _half_pixel_bilinear_matrix
    return _resample(features, size, matrix)


def resize_bicubic(
    features: Float[Array, "b h w c"],
    size: tuple[int, int],
    *,
    scales: tuple[float, float] | None = None,
) -> Array:
    """Bicubic resize (`interpolate(..., mode="bicubic")`), half-pixel centres, no antialiasing.

    Args:
        features: [b, h, w, c].
        size: (height, width) of the result, larger or smaller.
        scales: scale factors of height and width that determine sample positions, as with PyTorch's
            `scale_factor=`; by default the sizes do.

    Returns:
        [b, height, width, c]; `features` itself if it already has this size and no scales are
        given.
    """
    if scales is None:
        return _resample(features, size, _bicubic_matrix)
    # A factor near 1 moves the samples even if the size stays the same.
    for axis, output, scale in zip((1, 2), size, scales, strict=True):
        features = _along(features, axis, _bicubic_matrix(features.shape[axis], output, scale))
    return features


def adaptive_average_pool(features: Float[Array, "b h w c"], size: tuple[int, int]) -> Array:
    """Mean over windows [floor(i * in / out), ceil((i + 1) * in / out)) (`adaptive_avg_pool2d`).

    Args:
        features: [b, h, w, c].
        size: (height, width) of the result; windows overlap if it does not divide the input size.

    Returns:
        [b, height, width, c]; `features` itself if it already has this size.
    """
    return _resample(features, size, _pooling_matrix)


def pad_to_multiple(image: Float[Array, "b h w c"], multiple: int) -> Array:
    """Repeats the last row and column until height and width are multiples of `multiple`.

    Padding is only at the bottom and right, so cropping to the old size undoes it.
    """
    _, height, width, _ = image.shape
    # Not `jnp.pad`, whose mode jax2onnx cannot convert.
    for axis, amount in ((1, -height % multiple), (2, -width % multiple)):
        if amount:
            last = lax.slice_in_dim(image, image.shape[axis] - 1, None, axis=axis)
            image = jnp.concatenate([image, jnp.repeat(last, amount, axis)], axis)
    return image


def _resample(
    features: Array, size: tuple[int, int], matrix: Callable[[int, int], np.ndarray]
) -> Array:
    for axis, output in zip((1, 2), size, strict=True):
        if features.shape[axis] != output:
            features = _along(features, axis, matrix(features.shape[axis], output))
    return features


def _along(features: Array, axis: int, matrix: np.ndarray) -> Array:
    """Applies the matrix [out, in] to one axis.

    For long axes, the few samples with non-zero weights in each row are summed, which on the CPU
    takes a tenth of the product's time. The gradient does the same with the transposed matrix;
    JAX's own would be a scatter.
    """
    if matrix.size < _SHORT or max(_width(matrix), _width(matrix.T)) > _MAX_TAPS:
        return _product(features, axis, matrix)
    return _resampled(features, axis, _Matrix(matrix))


class _Matrix:
    """An array compared by value, so that it can be a static argument."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self._key = (array.shape, array.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Matrix) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _resampled(features: Array, axis: int, matrix: _Matrix) -> Array:
    return _taps(features, axis, matrix)


def _resampled_forward(features: Array, axis: int, matrix: _Matrix) -> tuple[Array, None]:
    return _resampled(features, axis, matrix), None


def _resampled_backward(axis: int, matrix: _Matrix, _: None, cotangent: Array) -> tuple[Array]:
    return (_resampled(cotangent, axis, _Matrix(np.ascontiguousarray(matrix.array.T))),)


_resampled.defvjp(_resampled_forward, _resampled_backward)


def _product(features: Array, axis: int, matrix: np.ndarray) -> Array:
    weights = jnp.asarray(matrix, features.dtype)
    # At default precision, accelerators would only keep 8 to 11 bits.
    subscripts = "oh,bhwc->bowc" if axis == 1 else "ow,bhwc->bhoc"
    return jnp.einsum(subscripts, weights, features, precision=lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnums=(1, 2))  # compiled once even if called outside `jit`
def _taps(features: Array, axis: int, resampling: _Matrix) -> Array:
    matrix = resampling.array
    width = _width(matrix)
    first = np.minimum((matrix != 0).argmax(1), matrix.shape[1] - width)
    shape = [1, 1, 1, 1]
    shape[axis] = len(matrix)

    def part(offset: int) -> Array:
        weights = matrix[np.arange(len(matrix)), first + offset].reshape(shape)
        samples = jnp.take(features, first + offset, axis, mode="clip")
        return samples * jnp.asarray(weights, features.dtype)

    result = part(0)
    for offset in range(1, width):
        result = result + part(offset)
    return result


def _width(matrix: np.ndarray) -> int:
    """The largest distance in samples from a row's first weight to its last."""
    nonzero = matrix != 0
    first, last = nonzero.argmax(1), nonzero.shape[1] - 1 - nonzero[:, ::-1].argmax(1)
    return int(np.where(nonzero.any(1), last - first + 1, 1).max())


def _bilinear_matrix(length: int, output: int) -> np.ndarray:
    position = np.arange(output) * ((length - 1) / (output - 1) if output > 1 else 0.0)
    # Hat functions: 1 at the sample itself, decreasing to 0 at its neighbours.
    return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(length)[None, :]))


def _half_pixel_bilinear_matrix(length: int, output: int) -> np.ndarray:
    position = np.clip((np.arange(output) + 0.5) * length / output - 0.5, 0, length - 1)
    return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(length)[None, :]))


def _bicubic_matrix(length: int, output: int, scale: float | None = None) -> np.ndarray:
    """Keys' kernel with a = -0.75; border samples are repeated outside."""
    position = (np.arange(output) + 0.5) / (scale or output / length) - 0.5
    low = np.floor(position).astype(int)
    matrix = np.zeros((output, length))
    for offset in (-1, 0, 1, 2):
        distance = np.abs(position - low - offset)
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        sample = np.clip(low + offset, 0, length - 1)
        np.add.at(matrix, (np.arange(output), sample), np.where(distance <= 1, near, far))
    return matrix


def _pooling_matrix(length: int, output: int) -> np.ndarray:
    index = np.arange(output)
    start, stop = index * length // output, -(-(index + 1) * length // output)
    column = np.arange(length)[None, :]
    inside = (column >= start[:, None]) & (column < stop[:, None])
    return inside / inside.sum(1, keepdims=True)
