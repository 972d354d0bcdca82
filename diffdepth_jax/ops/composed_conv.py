"""Three consecutive 3x3 convolutions, with nothing in between, as one 7x7 convolution.

Convolutions compose: three of them equal one with a 7x7 kernel, which is less work if the result
has few channels. They differ near the border: each of the three treats values outside the map as
zero, but in the composed convolution the first also produces values there, which the second and
third read. This excess only arises from, and only reaches, the two outermost rows or columns, so it
is computed separately and subtracted. The result is exact up to rounding.

In one dimension, a path of the sum leads from row r of the input through taps (a1, a2, a3), via row
a = r - a1 of the first result and row b = a - a2 of the second, to row y = b - a3 of the output.
The 7x7 kernel sums the products of all taps with equal r - y. A path is invalid at a border if a or
b lies outside the map. In two dimensions, a path is invalid if its rows or its columns are: the sum
over both, minus paths where both are.
"""

import functools
import itertools
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from diffdepth_jax.ops.tiled_conv import kernel_spectrum, tiled_conv

KERNEL_SIZE = 7
_STRIP = 2  # rows or columns at a border where invalid paths start and end
_Place = Literal["inside", "border"]


class ComposedConv(NamedTuple):
    """Three composed convolutions, as returned by `compose`, for `composed_conv`.

    Attributes:
        spectrum: spectrum of the 7x7 kernel, see `ops.tiled_conv`.
        rows: kernels for the excess at the top and bottom, [2, 2 i, 7 * 2 * o].
        columns: the same for the left and right, [2, 2 i, 7 * 2 * o].
        corners: the same for the top left, top right, bottom left and bottom right, [4, 4 i, 4 o].
    """

    spectrum: Float[Array, "f1 f2 i o2"]
    rows: Float[Array, "2 i2 o14"]
    columns: Float[Array, "2 i2 o14"]
    corners: Float[Array, "4 i4 o4"]


def best_tile(size: tuple[int, int]) -> int:
    """Side of the tiles for maps of (height, width) = size, in pixels.

    Large tiles overlap less; small tiles extend less beyond the map and have fewer frequencies,
    each with its own kernel. Chosen by CPU benchmarks for maps of 48x160, 88x304 and 176x608
    pixels; for the last two, the next smaller tile takes 7% longer.
    """
    pixels = size[0] * size[1]
    return 16 if pixels < 15_000 else 20 if pixels < 60_000 else 24


def compose(
    first: Float[Array, "3 3 i m"],
    second: Float[Array, "3 3 m n"],
    third: Float[Array, "3 3 n o"],
    tile: int,
) -> ComposedConv:
    """Composes the convolutions of these kernels (stride 1, zero padding 1, no bias) into one.

    This takes about as long as the three convolutions on a map of 50x50 pixels.

    Args:
        first, second, third: in the order in which they are applied.
        tile: side of the tiles of `ops.tiled_conv`, see `best_tile`.
    """
    channels, kernels = first.shape[2], (first, second, third)
    inside = _composed_kernel(*kernels, "inside", "inside")

    # Rotating the map turns every border into the top one.
    def turned(*turns: Callable[[Array], Array]) -> list[Array]:
        return [jnp.stack([turn(kernel) for turn in turns]) for kernel in kernels]

    edges = jax.vmap(partial(_composed_kernel, rows="border", columns="inside"))(
        *turned(_same, _upside_down, _transposed, lambda kernel: _upside_down(_transposed(kernel)))
    )
    edges = _square(edges, 1)  # side y r 7 i o
    edges = edges.transpose(0, 2, 4, 3, 1, 5).reshape(4, _STRIP * channels, -1)
    corners = jax.vmap(partial(_composed_kernel, rows="border", columns="border"))(
        *turned(_same, _mirrored, _upside_down, lambda kernel: _upside_down(_mirrored(kernel)))
    )
    corners = _square(_square(corners, 2), 1)  # corner y r y' r' i o
    corners = corners.transpose(0, 2, 4, 5, 1, 3, 6).reshape(4, _STRIP**2 * channels, -1)
    return ComposedConv(kernel_spectrum(inside, tile), edges[:2], edges[2:], corners)


def composed_conv(features: Float[Array, "b h w i"], conv: ComposedConv) -> Float[Array, "b h w o"]:
    """Applies the three convolutions given to `compose` to a map.

    Args:
        features: at least 4x4 pixels.
        conv: the result of `compose`.
    """
    outputs = tiled_conv(features, conv.spectrum, KERNEL_SIZE)
    columns = jnp.swapaxes(_strips(jnp.swapaxes(features, 1, 2), conv.columns), 2, 3)
    rows = _strips(features, conv.rows) - _corners(features, conv.corners)
    for strip, start in zip(rows, (0, features.shape[1] - _STRIP), strict=True):
        outputs = _subtracted(outputs, strip, 1, start)
    for strip, start in zip(columns, (0, features.shape[2] - _STRIP), strict=True):
        outputs = _subtracted(outputs, strip, 2, start)
    return outputs


def _strips(
    features: Float[Array, "b h w i"], kernels: Float[Array, "2 i2 o14"]
) -> Float[Array, "2 b 2 w o"]:
    """The excess from invalid paths in the first two and last two rows."""
    batch, _, width, channels = features.shape
    # Indexed by distance from the border.
    outer = jnp.stack([features[:, :_STRIP], features[:, : -_STRIP - 1 : -1]])
    outer = jnp.swapaxes(outer, 2, 3).reshape(2, batch * width, _STRIP * channels)
    taps = jnp.matmul(outer, kernels).reshape(2, batch, width, KERNEL_SIZE, -1)
    border = KERNEL_SIZE // 2
    taps = jnp.pad(taps, ((0, 0), (0, 0), (border, border), (0, 0), (0, 0)))
    parts = (taps[:, :, tap : tap + width, tap] for tap in range(KERNEL_SIZE))
    strips = cast(Array, sum(parts))
    strips = jnp.swapaxes(strips.reshape(2, batch, width, _STRIP, -1), 2, 3)
    return jnp.stack([strips[0], strips[1, :, ::-1]])


def _corners(
    features: Float[Array, "b h w i"], kernels: Float[Array, "4 i4 o4"]
) -> Float[Array, "2 b 2 w o"]:
    """The excess from paths invalid in both axes, in the first two and last two rows."""
    batch, _, width, channels = features.shape
    turned = [
        features[:, rows, columns]
        for rows in (slice(_STRIP), slice(None, -_STRIP - 1, -1))
        for columns in (slice(_STRIP), slice(None, -_STRIP - 1, -1))
    ]
    inputs = jnp.stack(turned).reshape(4, batch, _STRIP**2 * channels)
    corners = jnp.matmul(inputs, kernels).reshape(4, batch, _STRIP, _STRIP, -1)
    between = jnp.zeros((batch, _STRIP, width - 2 * _STRIP, corners.shape[-1]), corners.dtype)
    top = jnp.concatenate([corners[0], between, corners[1][:, :, ::-1]], 2)
    bottom = jnp.concatenate([corners[2], between, corners[3][:, :, ::-1]], 2)
    return jnp.stack([top, bottom[:, ::-1]])


def _subtracted(outputs: Array, strip: Array, axis: int, start: int) -> Array:
    part = lax.slice_in_dim(outputs, start, start + _STRIP, axis=axis)
    return lax.dynamic_update_slice_in_dim(outputs, part - strip, start, axis)


def _square(taps: Array, axis: int) -> Array:
    """Expands an axis over (y, r) = (0, 0), (0, 1), (1, 0) to two axes; (1, 1) has no paths."""
    taps = jnp.pad(taps, [(0, 1) if index == axis else (0, 0) for index in range(taps.ndim)])
    return taps.reshape(*taps.shape[:axis], _STRIP, _STRIP, *taps.shape[axis + 1 :])


def _same(kernel: Array) -> Array:
    return kernel


def _upside_down(kernel: Array) -> Array:
    return kernel[::-1]


def _mirrored(kernel: Array) -> Array:
    return kernel[:, ::-1]


def _transposed(kernel: Array) -> Array:
    return jnp.swapaxes(kernel, 0, 1)


def _composed_kernel(
    first: Array, second: Array, third: Array, rows: _Place, columns: _Place
) -> Array:
    """Sums of products of three taps, [q, p, i, o], over the paths selected for rows and
    columns."""
    (row_pairs, row_sums), (column_pairs, column_sums) = _paths(rows), _paths(columns)
    inputs, outputs = first.shape[2], third.shape[3]
    pairs = jnp.einsum("acmn,bdno->abcdmo", second, third)  # a2 a3 (rows) b2 b3 (columns) m o
    groups = np.kron(row_pairs, column_pairs)
    pairs = jnp.matmul(groups, pairs.reshape(groups.shape[1], -1))
    products = jnp.einsum("efim,gmo->efgio", first, pairs.reshape(len(groups), -1, outputs))
    products = products.reshape(3, 3, len(row_pairs), len(column_pairs), -1)
    sums = np.kron(row_sums, column_sums)
    kernel = jnp.matmul(sums, jnp.swapaxes(products, 1, 2).reshape(sums.shape[1], -1))
    return kernel.reshape(len(row_sums), len(column_sums), inputs, outputs)


@functools.cache
def _paths(place: _Place) -> tuple[np.ndarray, np.ndarray]:
    """Which products of taps are summed together in one dimension.

    Returns:
        pairs: float32 [g, 9]; the taps (a2, a3), a3 fastest, in each group: all that lead from a
        given row of the first result to a given row of the output. sums: float32 [q, (a1, g)]; q
        are the seven taps of the composed kernel in the interior, and (y, r) = (0, 0), (0, 1), (1,
        0) at a border, the first rows of a map.
    """
    offsets = (-1, 0, 1)
    groups: dict[tuple[int, int], set[tuple[int, int]]] = {}
    sums: dict[tuple[int, int], set[tuple[int, tuple[int, int]]]] = {}
    for y, first, second, third in itertools.product(
        (0,) if place == "inside" else (0, 1), offsets, offsets, offsets
    ):
        b, a = y + third, y + third + second
        r = a + first
        if place == "inside" or (r >= 0 and (a < 0 or b < 0)):
            groups.setdefault((y, a), set()).add((second, third))
            sums.setdefault((y, r), set()).add((first, (y, a)))
    names = list(groups)
    pair_matrix = np.zeros((len(groups), 3, 3), np.float32)
    for index, pairs in enumerate(groups.values()):
        for second, third in pairs:
            pair_matrix[index, second + 1, third + 1] = 1
    sum_matrix = np.zeros((len(sums), 3, len(groups)), np.float32)
    for index, key in enumerate(sorted(sums)):
        for first, group in sums[key]:
            sum_matrix[index, first + 1, names.index(group)] = 1
    return pair_matrix.reshape(len(groups), -1), sum_matrix.reshape(len(sums), -1)
