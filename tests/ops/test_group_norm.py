"""Group normalisation's gradient in closed form against float64 and against JAX's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.ops import platform
from diffdepth_jax.ops.group_norm import group_norm
from diffdepth_jax.ops.remat import POLICIES

GROUPS, EPS = 4, 1e-5
SHAPES = [(2, 5, 7, 8), (1, 1, 1, 8), (3, 1, 4, 4)]


def _arrays(shape, seed=0, mean=3.0):
    rng = np.random.default_rng(seed)
    inputs = mean + rng.standard_normal(shape)
    scale, bias = rng.standard_normal((2, shape[-1]))
    return tuple(
        array.astype(np.float32) for array in (inputs, scale, bias, rng.standard_normal(shape))
    )


def _normalised(inputs, scale, bias):
    """In the inputs' own precision."""
    b, h, w, c = inputs.shape
    groups = inputs.reshape(b, h, w, GROUPS, c // GROUPS)
    centred = groups - groups.mean((1, 2, 4), keepdims=True)
    variance = (centred**2).mean((1, 2, 4), keepdims=True)
    return (centred / np.sqrt(variance + EPS)).reshape(inputs.shape) * scale + bias


def _numerical_gradients(arrays, cotangent):
    """Central differences in float64, one element at a time."""
    arrays = [array.astype(np.float64) for array in arrays]
    gradients = [np.zeros_like(array) for array in arrays]
    for array, gradient in zip(arrays, gradients, strict=True):
        for index in np.ndindex(array.shape):
            value, differences = array[index], []
            for step in (1e-5, -1e-5):
                array[index] = value + step
                differences.append((_normalised(*arrays) * cotangent).sum())
            array[index] = value
            gradient[index] = (differences[0] - differences[1]) / 2e-5
    return gradients


def _pullback(arrays, gradient, dtype=jnp.float32):
    def function(inputs, scale, bias):
        return group_norm(inputs, scale, bias, num_groups=GROUPS, eps=EPS, gradient=gradient)

    return jax.vjp(function, jnp.asarray(arrays[0], dtype), *map(jnp.asarray, arrays[1:]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", ["auto", "xla", "custom"])
def test_values_and_gradients_match_float64(shape, gradient):
    *arrays, cotangent = _arrays(shape)
    outputs, pullback = _pullback(arrays, gradient)
    expected = _normalised(*(array.astype(np.float64) for array in arrays))
    np.testing.assert_allclose(outputs, expected, atol=2e-4)  # some groups have a tiny variance
    for found, wanted in zip(
        pullback(jnp.asarray(cotangent)), _numerical_gradients(arrays, cotangent), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=2e-4 * max(1, np.abs(wanted).max()))


def test_values_do_not_depend_on_the_gradient():
    *arrays, _ = _arrays((2, 6, 9, 16))
    found = [np.asarray(_pullback(arrays, gradient)[0]) for gradient in ("xla", "custom")]
    np.testing.assert_array_equal(*found)


def test_bfloat16_gradients_keep_the_dtype():
    *arrays, cotangent = _arrays((2, 8, 8, 8))
    given = jnp.asarray(cotangent, jnp.bfloat16)
    ours, theirs = (
        _pullback(arrays, gradient, jnp.bfloat16)[1](given) for gradient in ("custom", "xla")
    )
    assert [each.dtype for each in ours] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for found, wanted in zip(ours, theirs, strict=True):
        difference = np.linalg.norm(np.float32(found) - np.float32(wanted))
        assert difference < 1e-2 * np.linalg.norm(np.float32(wanted))


def test_gradient_in_a_scan_that_recomputes():
    *arrays, cotangent = _arrays((1, 6, 5, 8))

    def loss(gradient, policy, arrays):
        def step(carry, _):
            outputs = group_norm(carry, *arrays[1:], num_groups=GROUPS, eps=EPS, gradient=gradient)
            return jnp.tanh(outputs), None

        step = jax.checkpoint(step, prevent_cse=False, policy=policy)
        return (jax.lax.scan(step, arrays[0], length=3)[0] * cotangent).sum()

    wanted = jax.grad(loss, 2)("xla", None, arrays)
    for policy in POLICIES.values():
        for found, expected in zip(
            jax.grad(loss, 2)("custom", policy, arrays), wanted, strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_accelerators_use_jax_s_own_gradient():
    *arrays, _ = _arrays((1, 2, 2, 4))

    def traced(platform_name):
        with platform.tracing_for(platform_name):
            return str(jax.make_jaxpr(lambda *a: group_norm(*a, num_groups=2))(*arrays))

    assert "custom_vjp" in traced("cpu")
    assert "custom_vjp" not in traced("cuda")


@pytest.mark.parametrize(("option", "times"), [("full", 2), ("convolutions", 1)])
def test_statistics_are_recomputed_only_with_everything_else(option, times):
    *arrays, _ = _arrays((1, 2, 2, 4))

    @partial(jax.checkpoint, policy=POLICIES[option])
    def function(inputs, scale, bias):
        return jnp.tanh(group_norm(inputs, scale, bias, 2, gradient="custom"))

    def loss(arrays):
        return function(*arrays).sum()

    assert str(jax.make_jaxpr(jax.grad(loss))(arrays)).count("rsqrt") == times
