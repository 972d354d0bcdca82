"""tiled_conv against XLA's own convolution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffdepth_jax.ops.tiled_conv import kernel_spectrum, tiled_conv


def _plain(features, kernel):
    border = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        features,
        kernel,
        (1, 1),
        ((border, border), (border, border)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _tiled(features, kernel, tile):
    return tiled_conv(features, kernel_spectrum(kernel, tile), kernel.shape[0])


def _arrays(size, kernel_size, batch=2, inputs=3, outputs=4):
    rng = np.random.default_rng(0)
    shapes = (batch, *size, inputs), (kernel_size, kernel_size, inputs, outputs)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


# Smaller than a tile, whole tiles, and a bit more; odd and even tiles.
@pytest.mark.parametrize(
    ("size", "kernel_size", "tile"),
    [((5, 30), 7, 16), ((21, 9), 7, 12), ((11, 13), 3, 7)],
)
def test_values_and_gradients_equal_a_plain_convolution(size, kernel_size, tile):
    features, kernel = _arrays(size, kernel_size)
    cotangent = _plain(features, kernel)

    @partial(jax.jit, static_argnums=0)
    def values_and_gradients(function):
        output, pullback = jax.vjp(function, features, kernel)
        return output, *pullback(cotangent)

    tiled = values_and_gradients(partial(_tiled, tile=tile))
    for got, want in zip(tiled, values_and_gradients(_plain), strict=True):
        assert np.abs(got - want).max() < 2e-6 * np.abs(want).max()


@pytest.mark.parametrize(("kernel_size", "tile"), [(7, 11), (4, 16)])
def test_impossible_tiles_are_refused(kernel_size, tile):
    _, kernel = _arrays((8, 8), kernel_size)
    with pytest.raises(ValueError, match=f"not {kernel_size} and {tile}"):
        kernel_spectrum(kernel, tile)
