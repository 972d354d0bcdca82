"""Three 3x3 convolutions in a row, without anything between, as one 7x7 convolution.

Convolutions compose: what three of them do to a map is what one with a 7x7 kernel does, if it has
the fewer channels less work. That is not so near the border, as each of the three takes its
inputs outside the map to be zero, and the composed one lets the first write there and the second
and third read it. What it has too much comes from the two outermost rows or columns and reaches
the two outermost ones, so it is computed apart and subtracted: exact, up to rounding.

In one dimension, a path of the sum leads from row r of the input by taps (a1, a2, a3) over row
a = r - a1 of the first result and row b = a - a2 of the second to row y = b - a3 of the output. The
7x7 kernel sums the products of all taps with equal r - y. A path is wrong at a border if a or b
lies beyond. In two dimensions a path is wrong if it is in its rows or in its columns: the sum of
both, less those that are wrong in both.
"""

import functools
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from diffdepth_jax.ops.tiled_conv import kernel_spectrum, tiled_conv

KERNEL_SIZE = 7
# Of 16, 20, 24 and 32 the fastest for maps of 48x160 pixels, and within a tenth of it for 88x304.
_TILE = 16
_STRIP = 2  # rows or columns at a border that wrong paths come from and lead to
_Place = Literal["inside", "start", "end"]


class ComposedConv(NamedTuple):
    """Three convolutions as `compose` returns them, for `composed_conv`.

    Attributes:
        spectrum: of the 7x7 kernel, see `ops.tiled_conv`.
        rows: at the top and the bottom, [2, 2 i, 7 * 2 * o].
        columns: at the left and the right, [2, 2 i, 7 * 2 * o].
        corners: top left, top right, bottom left, bottom right, [4, 4 i, 4 o].
    """

    spectrum: Float[Array, "f1 f2 i o2"]
    rows: Float[Array, "2 i2 o14"]
    columns: Float[Array, "2 i2 o14"]
    corners: Float[Array, "4 i4 o4"]


def compose(
    first: Float[Array, "3 3 i m"],
    second: Float[Array, "3 3 m n"],
    third: Float[Array, "3 3 n o"],
) -> ComposedConv:
    """The convolutions of these kernels (stride 1, zero padding 1, no bias) as one.

    That takes as long as the three convolutions of a map of some 50x50 pixels.

    Args:
        first, second, third: in the order in which they are applied.
    """
    channels = first.shape[2]
    pairs = jnp.einsum("abmn,cdno->acbdmo", second, third)

    def kernel(rows: _Place, columns: _Place) -> Float[Array, "q p i o"]:
        return _composed_kernel(first, pairs, rows, columns)

    def strip(taps: Float[Array, "p 3 i o"]) -> Float[Array, "i2 o14"]:
        """[7, (y, r), i, o] to [(r i), (7 y o)]."""
        square = jnp.moveaxis(_square(taps, 1), 2, 0)  # r 7 y i o
        return jnp.moveaxis(square, 3, 1).reshape(_STRIP * channels, -1)

    def corner(taps: Float[Array, "3 3 i o"]) -> Float[Array, "i4 o4"]:
        square = _square(_square(taps, 1), 0)  # y r y' r' i o
        return square.transpose(1, 3, 4, 0, 2, 5).reshape(_STRIP**2 * channels, -1)

    sides: tuple[_Place, _Place] = ("start", "end")
    return ComposedConv(
        kernel_spectrum(kernel("inside", "inside"), _TILE),
        jnp.stack([strip(jnp.swapaxes(kernel(side, "inside"), 0, 1)) for side in sides]),
        jnp.stack([strip(kernel("inside", side)) for side in sides]),
        jnp.stack([corner(kernel(rows, columns)) for rows in sides for columns in sides]),
    )


def composed_conv(features: Float[Array, "b h w i"], conv: ComposedConv) -> Float[Array, "b h w o"]:
    """What the three convolutions of `compose`, one after the other, make of a map.

    Args:
        features: of at least 4x4 pixels.
        conv: of `compose`.
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
    """What wrong paths add to the two first and the two last rows."""
    batch, _, width, channels = features.shape
    # By distance from the border.
    outer = jnp.stack([features[:, :_STRIP], features[:, : -_STRIP - 1 : -1]])
    outer = jnp.swapaxes(outer, 2, 3).reshape(2, batch * width, _STRIP * channels)
    taps = jnp.matmul(outer, kernels).reshape(2, batch, width, KERNEL_SIZE, -1)
    border = KERNEL_SIZE // 2
    taps = jnp.pad(taps, ((0, 0), (0, 0), (border, border), (0, 0), (0, 0)))
    strips = sum(taps[:, :, tap : tap + width, tap] for tap in range(KERNEL_SIZE))
    strips = jnp.swapaxes(strips.reshape(2, batch, width, _STRIP, -1), 2, 3)
    return jnp.stack([strips[0], strips[1, :, ::-1]])


def _corners(
    features: Float[Array, "b h w i"], kernels: Float[Array, "4 i4 o4"]
) -> Float[Array, "2 b 2 w o"]:
    """What is wrong both in its rows and in its columns, in the two first and last rows."""
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
    """An axis of (y, r) = (0, 0), (0, 1), (1, 0) as two; nothing leads from row 1 to row 1."""
    taps = jnp.pad(taps, [(0, 1) if index == axis else (0, 0) for index in range(taps.ndim)])
    return taps.reshape(*taps.shape[:axis], _STRIP, _STRIP, *taps.shape[axis + 1 :])


def _composed_kernel(first: Array, pairs: Array, rows: _Place, columns: _Place) -> Array:
    """Sums of products of three taps, [q, p, i, o], over the paths of two places.

    Args:
        first: [3, 3, i, m].
        pairs: products of the taps of the other two, [a2, a3 (rows), b2, b3 (columns), m, o].
    """
    (row_pairs, row_taps, row_sums), (column_pairs, column_taps, column_sums) = (
        _paths(rows),
        _paths(columns),
    )
    middle, outputs = pairs.shape[-2:]
    groups = np.kron(row_pairs, column_pairs)
    grouped = jnp.matmul(groups, pairs.reshape(groups.shape[1], -1))
    first = first[np.asarray(row_taps)][:, np.asarray(column_taps)]
    products = jnp.einsum("efim,gmo->efgio", first, grouped.reshape(len(groups), middle, outputs))
    products = products.reshape(
        len(row_taps), len(column_taps), len(row_pairs), len(column_pairs), -1
    )
    products = jnp.swapaxes(products, 1, 2)
    sums = np.kron(row_sums, column_sums)
    kernel = jnp.matmul(sums, products.reshape(sums.shape[1], -1))
    return kernel.reshape(len(row_sums), len(column_sums), first.shape[2], outputs)


@functools.cache
def _paths(place: _Place) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Which products of taps belong together in one dimension.

    Returns:
        pairs: float32 [g, 9]; the taps (a2, a3), a3 fastest, of each group: all that lead from one
            row of the first result to one row of the output.
        taps: those of the first kernel that occur.
        sums: float32 [q, (a1, g)]; inside, of the seven taps of the composed kernel; at a border,
            of (y, r) = (0, 0), (0, 1), (1, 0), counted from it.
    """
    offsets = (-1, 0, 1)
    groups, sums = {}, {}
    for y in (0,) if place == "inside" else (0, 1):
        for third in offsets:
            for second in offsets:
                b, a = y + third, y + third + second
                for first in offsets:
                    r = a + first
                    if place != "inside" and not ((b < 0 or a < 0) and r >= 0):
                        continue
                    taps = (first, second, third)
                    if place == "end":
                        taps = tuple(-tap for tap in taps)
                    groups.setdefault((y, a), set()).add(taps[1:])
                    sums.setdefault((y, r), set()).add((taps[0], (y, a)))
    used = tuple(sorted({first for each in sums.values() for first, _ in each}))
    names = list(groups)
    pair_matrix = np.zeros((len(groups), 9), np.float32)
    for index, pairs in enumerate(groups.values()):
        for second, third in pairs:
            pair_matrix[index, 3 * (second + 1) + third + 1] = 1
    sum_matrix = np.zeros((len(sums), len(used), len(groups)), np.float32)
    for index, key in enumerate(sorted(sums)):
        for first, group in sums[key]:
            sum_matrix[index, used.index(first), names.index(group)] = 1
    return pair_matrix, tuple(tap + 1 for tap in used), sum_matrix.reshape(len(sums), -1)
