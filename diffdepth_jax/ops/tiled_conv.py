"""Convolution with a large kernel as products in the frequency domain of overlapping tiles.

A k x k convolution multiplies every input by k^2 numbers. In the frequency domain of an n x n tile,
with m x m outputs unaffected by wrap-around, m = n - k + 1 (overlap-save), it multiplies each of
n^2 / 2 frequencies by one complex number (Mathieu et al. 2014, arXiv:1312.5851). The discrete
Fourier transforms are matrix products along one axis after the other. Float32 is as accurate as in
direct convolution: unlike Winograd's, these transforms are orthogonal up to scale.

Everything, including gradients, consists of matrix products and slices, so it is fast inside
`lax.scan`.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def kernel_spectrum(kernel: Float[Array, "k k i o"], tile: int) -> Float[Array, "f1 f2 i o2"]:
    """A kernel's spectrum at the frequencies of a tile, for `tiled_conv`.

    Args:
        kernel: must have an odd size.
        tile: n, at least 2 k - 2.

    Returns:
        [n // 2 + 1, n, i, 2 o]: real parts, then imaginary parts.
    """
    size, _, inputs, outputs = kernel.shape
    if size % 2 == 0 or tile < 2 * (size - 1):
        raise ValueError(
            f"the kernel size k must be odd and the tile at least 2 k - 2 pixels, not {size} and "
            f"{tile}"
        )
    half, taps = np.arange(tile // 2 + 1), np.arange(size)
    phase = half[:, None, None, None] * taps[:, None] + np.arange(tile)[:, None, None] * taps
    # The conjugate of the transform, because this is cross-correlation.
    waves = np.exp(2j * np.pi / tile * phase)
    waves = np.stack([waves.real, waves.imag], 2).reshape(-1, size * size)
    spectrum = _product(waves, kernel.reshape(size * size, inputs * outputs))
    spectrum = spectrum.reshape(len(half), tile, 2, inputs, outputs)
    return jnp.moveaxis(spectrum, 2, 3).reshape(len(half), tile, inputs, 2 * outputs)


def tiled_conv(
    features: Float[Array, "b h w i"], spectrum: Float[Array, "f1 f2 i o2"], kernel_size: int
) -> Float[Array, "b h w o"]:
    """Cross-correlation, stride 1, zero padding of half the kernel, no bias.

    Args:
        features: [b, h, w, i], float32.
        spectrum: from `kernel_spectrum`.
        kernel_size: k, the size of that kernel.
    """
    batch, height, width, channels = features.shape
    half, tile, _, outputs = spectrum.shape
    outputs //= 2
    valid = tile - kernel_size + 1
    grid = (-(-height // valid), -(-width // valid))
    transforms = _transforms(tile, valid)
    tiles = batch * grid[0] * grid[1]

    padded = _padded(features, grid, valid, kernel_size)
    rows = _windows(padded, 1, 0, tile, valid)  # y b ty w i
    hidden = _product(transforms.rows, rows.reshape(tile, -1))
    hidden = hidden.reshape(half, 2, batch, grid[0], padded.shape[2], channels)
    columns = _windows(hidden, 4, 2, tile, valid)  # f1 re/im x b ty tx i
    hidden = _product(_repeated(transforms.columns, half), columns.reshape(half, 2 * tile, -1))

    # Real and imaginary parts are stacked as rows for the features, and as columns for the kernel.
    products = jnp.matmul(
        hidden.reshape(half * tile, 2 * tiles, channels),
        spectrum.reshape(half * tile, channels, 2 * outputs),
    ).reshape(half * tile, 2, tiles, 2, outputs)
    real = products[:, 0, :, 0] - products[:, 1, :, 1]
    imaginary = products[:, 0, :, 1] + products[:, 1, :, 0]
    hidden = jnp.stack([real, imaginary], 1).reshape(half, 2 * tile, tiles * outputs)

    hidden = _product(_repeated(transforms.columns_back, half), hidden)  # f1 (re/im x) (tile o)
    hidden = _product(transforms.rows_back, hidden.reshape(2 * half, -1))
    hidden = hidden.reshape(valid, valid, batch, *grid, outputs).transpose(2, 3, 0, 4, 1, 5)
    hidden = hidden.reshape(batch, grid[0] * valid, grid[1] * valid, outputs)
    return hidden[:, :height, :width]


def _padded(features: Array, grid: tuple[int, int], valid: int, kernel_size: int) -> Array:
    border = kernel_size // 2
    amounts = [
        (border, (count + 1) * valid - border - side)
        for count, side in zip(grid, features.shape[1:3], strict=True)
    ]
    return jnp.pad(features, ((0, 0), *amounts, (0, 0)))


def _windows(array: Array, axis: int, place: int, tile: int, valid: int) -> Array:
    """Windows of `tile` entries along an axis with stride `valid`: the axis then counts windows,
    and a new axis at `place` has the entries.

    A window is a block of `valid` entries and the first entries of the next block.
    """
    shape = array.shape
    count = shape[axis] // valid
    blocks = array.reshape(*shape[:axis], count, valid, *shape[axis + 1 :])
    blocks = jnp.moveaxis(blocks, axis + 1, place)
    counted = axis + 1 if place <= axis else axis
    first = lax.slice_in_dim(blocks, 0, count - 1, axis=counted)
    next_ones = lax.slice_in_dim(blocks, 1, count, axis=counted)
    next_ones = lax.slice_in_dim(next_ones, 0, tile - valid, axis=place)
    return jnp.concatenate([first, next_ones], place)


class _Transforms(NamedTuple):
    """Matrices of the tiles' Fourier transform and its inverse.

    Attributes:
        rows: [(f1, re/im), y], for real input; half the frequencies suffice.
        columns: [(f2, re/im), (re/im, x)].
        columns_back: [(re/im, x), (f2, re/im)], for valid x only.
        rows_back: [y, (f1, re/im)], for valid y only, with real output.
    """

    rows: np.ndarray
    columns: np.ndarray
    columns_back: np.ndarray
    rows_back: np.ndarray


@functools.cache
def _transforms(tile: int, valid: int) -> _Transforms:
    wave = np.exp(-2j * np.pi / tile * np.outer(np.arange(tile), np.arange(tile)))
    half = wave[: tile // 2 + 1]
    back = wave[:valid].conj() / tile
    # The omitted frequencies are the conjugates of these, except for self-conjugate ones.
    own = 2 * np.arange(len(half)) % tile == 0
    half_back = back[:, : len(half)] * np.where(own, 1, 2)
    return _Transforms(
        rows=np.stack([half.real, half.imag], 1).reshape(-1, tile),
        columns=_complex_matrix(wave).reshape(2 * tile, -1),
        columns_back=_complex_matrix(back).transpose(1, 0, 3, 2).reshape(2 * valid, -1),
        rows_back=np.stack([half_back.real, -half_back.imag], -1).reshape(valid, -1),
    )


def _complex_matrix(matrix: np.ndarray) -> np.ndarray:
    """A complex matrix [out, in] as a real one, [out, re/im, re/im, in]."""
    real, imaginary = matrix.real, matrix.imag
    return np.stack([np.stack([real, -imaginary], 1), np.stack([imaginary, real], 1)], 1)


def _repeated(matrix: np.ndarray, count: int) -> np.ndarray:
    return np.broadcast_to(matrix, (count, *matrix.shape))


def _product(matrix: np.ndarray, values: Array) -> Array:
    # At default precision, accelerators would only keep 8 to 11 bits.
    return jnp.matmul(jnp.asarray(matrix, values.dtype), values, precision=lax.Precision.HIGHEST)
