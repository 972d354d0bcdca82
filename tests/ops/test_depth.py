"""Depth and its logit against the published formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.ops.depth import MAX_DECODED_DEPTH, depth_from_logit, logit_from_depth


def test_depth_is_one_over_the_clamped_sigmoid_minus_one():
    logit = np.linspace(-20, 20, 401)
    want = 1 / np.maximum(1 / (1 + np.exp(-logit)), 1e-6) - 1
    np.testing.assert_allclose(depth_from_logit(jnp.asarray(logit)), want, rtol=3e-6)


def test_extreme_logits_give_finite_depths_and_gradients():
    logit = jnp.array([-1e30, -200.0, -14.0, 0.0, 14.0, 200.0, 1e30])
    depth, gradient = jax.vmap(jax.value_and_grad(depth_from_logit))(logit)
    assert np.isfinite(depth).all() and np.isfinite(gradient).all()
    np.testing.assert_allclose(depth[:3], MAX_DECODED_DEPTH, rtol=1e-5)
    np.testing.assert_array_equal(gradient[:3], 0.0)
    # Where nothing is clamped, d depth / d logit = -depth.
    np.testing.assert_allclose(gradient[3:], -depth[3:], rtol=1e-6)


def test_half_precision_is_decoded_in_single():
    assert depth_from_logit(jnp.zeros(3, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("depth", [0.01, 1.0, 17.3, 88.0])
def test_logit_from_depth_is_the_inverse(depth):
    assert depth_from_logit(jnp.float32(logit_from_depth(depth))) == pytest.approx(depth, rel=1e-5)


@pytest.mark.parametrize("depth", [0.0, -1.0, 1e7, float("nan")])
def test_depths_without_a_logit_are_refused(depth):
    with pytest.raises(ValueError, match="depth must be between"):
        logit_from_depth(depth)
