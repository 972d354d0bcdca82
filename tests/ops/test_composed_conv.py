"""Three composed convolutions against the same three in sequence."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.ops.composed_conv import best_tile, compose, composed_conv
from diffdepth_jax.ops.conv import conv3x3


def _in_a_row(features, *kernels):
    for kernel in kernels:
        features = conv3x3(features, kernel, gradient="xla")
    return features


def _composed(features, *kernels, tile=16):
    return composed_conv(features, compose(*kernels, tile))


def _arrays(size, batch=2, channels=(6, 5, 7, 4)):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    kernels = [normal(3, 3, *pair) / 3 / pair[0] ** 0.5 for pair in itertools.pairwise(channels)]
    return normal(batch, *size, channels[0]), *kernels


@partial(jax.jit, static_argnums=0)
def _values_and_gradients(function, arrays):
    output, pullback = jax.vjp(function, *arrays)
    return output, pullback(output)


@pytest.mark.parametrize(("size", "tile"), [((4, 5), 16), ((13, 21), 20)])
def test_every_pixel_and_gradient_is_exact(size, tile):
    arrays = _arrays(size)
    want, wanted_gradients = _values_and_gradients(_in_a_row, arrays)
    got, gradients = _values_and_gradients(partial(_composed, tile=tile), arrays)
    error = np.abs(got - want).max((0, 3)) / np.abs(want).max()
    assert (error < 2e-6).all(), np.argwhere(error >= 2e-6)
    for ours, theirs in zip(gradients, wanted_gradients, strict=True):
        assert np.abs(ours - theirs).max() < 5e-6 * np.abs(theirs).max()


def test_the_border_needs_its_correction():
    """The 7x7 kernel alone is far off there, so the test above can fail."""
    features, *kernels = _arrays((12, 14))

    @jax.jit
    def uncorrected(features, kernels):
        conv = compose(*kernels, 16)
        nothing = {
            name: jnp.zeros_like(getattr(conv, name)) for name in ("rows", "columns", "corners")
        }
        return composed_conv(features, conv._replace(**nothing))

    want = _in_a_row(features, *kernels)
    wrong = np.abs(uncorrected(features, kernels) - want).max((0, 3)) / np.abs(want).max()
    assert (wrong[2:-2, 2:-2] < 2e-6).all()
    border = np.ones((12, 14), bool)
    border[2:-2, 2:-2] = False
    assert (wrong[border] > 1e-3).all()


def test_larger_maps_use_larger_tiles():
    sizes = [(7, 7), (48, 160), (88, 304), (176, 608), (4000, 4000)]
    assert [best_tile(size) for size in sizes] == [16, 16, 20, 24, 24]
