"""Losses against float64 NumPy on the valid pixels alone, and what invalid pixels may hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.ops import losses

LOSSES = {
    "l1": lambda *arrays: losses.l1(*arrays, max_depth=10.0),
    "l2": lambda *arrays: losses.l2(*arrays, max_depth=10.0),
    "silog": losses.silog,
}


def _maps(seed=0):
    """Depths up to 14 m: some beyond the clamp of 10 m."""
    rng = np.random.default_rng(seed)
    prediction = rng.uniform(0.5, 14.0, (3, 4, 5, 1))
    target = rng.uniform(0.5, 14.0, (3, 4, 5, 1))
    return prediction, target, rng.random((3, 4, 5, 1)) < 0.6


def _device(prediction, target, valid_mask):
    return (
        jnp.asarray(prediction, jnp.float32),
        jnp.asarray(target, jnp.float32),
        jnp.asarray(valid_mask),
    )


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_clamped_errors_are_averaged_over_valid_pixels(name, power):
    prediction, target, valid_mask = _maps()
    want = [
        (np.abs(np.clip(p[m], 0, 10) - np.clip(t[m], 0, 10)) ** power).mean()
        for p, t, m in zip(prediction, target, valid_mask, strict=True)
    ]
    np.testing.assert_allclose(LOSSES[name](*_device(prediction, target, valid_mask)), want, 1e-5)


def test_silog_per_image():
    prediction, target, valid_mask = _maps()
    want = []
    for p, t, m in zip(prediction, target, valid_mask, strict=True):
        error = np.log(p[m] + 1e-3) - np.log(t[m] + 1e-3)
        want.append(10 * np.sqrt((error**2).mean() - 0.85 * error.mean() ** 2))
    np.testing.assert_allclose(losses.silog(*_device(prediction, target, valid_mask)), want, 1e-5)


def test_silog_of_the_release_pools_the_batch():
    prediction, target, valid_mask = _maps()
    error = np.log(prediction[valid_mask] + 1e-3) - np.log(target[valid_mask] + 1e-3)
    want = 2 * np.sqrt(error.var(ddof=1) + 0.15 * error.mean() ** 2)
    got = losses.silog(
        *_device(prediction, target, valid_mask), scale=2.0, ddof=1, reduction="batch"
    )
    assert got.shape == ()
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf, -np.inf, -5.0])
def test_invalid_pixels_do_not_matter(name, garbage):
    """Neither to the value nor to the gradient, whatever both sides hold there."""
    prediction, target, valid_mask = _maps()
    clean = _device(
        np.where(valid_mask, prediction, 1.0), np.where(valid_mask, target, 1.0), valid_mask
    )
    dirty = _device(
        np.where(valid_mask, prediction, garbage), np.where(valid_mask, target, garbage), valid_mask
    )

    def total(*arrays):
        return LOSSES[name](*arrays).sum()

    for got, want in zip(
        jax.value_and_grad(total)(*dirty), jax.value_and_grad(total)(*clean), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    assert np.isfinite(jax.grad(total)(*dirty)).all()


@pytest.mark.parametrize("name", LOSSES)
def test_no_valid_pixel_gives_zero_and_no_gradient(name):
    prediction, _, valid_mask = _maps()
    valid_mask[1] = False
    arrays = _device(prediction, np.full_like(prediction, np.nan), valid_mask)
    arrays = (arrays[0], jnp.where(valid_mask, 2.0, arrays[1]), arrays[2])
    values = LOSSES[name](*arrays)
    assert values[1] == 0.0 and (values[jnp.array([0, 2])] > 0).all()
    gradient = jax.grad(lambda p: LOSSES[name](p, *arrays[1:]).sum())(arrays[0])
    assert np.isfinite(gradient).all() and (gradient[1] == 0).all()


def test_one_valid_pixel_is_enough_for_the_unbiased_variance():
    prediction, target, valid_mask = _maps()
    valid_mask[:] = False
    valid_mask[0, 0, 0, 0] = True
    arrays = _device(prediction, target, valid_mask)
    value, gradient = jax.value_and_grad(
        lambda p: losses.silog(p, *arrays[1:], ddof=1, reduction="batch")
    )(arrays[0])
    error = np.log(prediction[0, 0, 0, 0] + 1e-3) - np.log(target[0, 0, 0, 0] + 1e-3)
    np.testing.assert_allclose(value, 10 * np.sqrt(0.15) * abs(error), rtol=1e-4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_costs_nothing(name):
    _, target, valid_mask = _maps()
    target = np.minimum(target, 9.0)
    arrays = _device(target, target, valid_mask)
    value, gradient = jax.value_and_grad(lambda p: LOSSES[name](p, *arrays[1:]).sum())(arrays[0])
    assert value == 0.0 and np.isfinite(gradient).all()


def test_predictions_beyond_the_clamp_get_no_gradient():
    arrays = _device(
        np.full((1, 1, 2, 1), [[[[12.0], [8.0]]]]),
        np.full((1, 1, 2, 1), 9.0),
        np.ones((1, 1, 2, 1), bool),
    )
    gradient = jax.grad(lambda p: LOSSES["l1"](p, *arrays[1:]).sum())(arrays[0])
    np.testing.assert_allclose(gradient.ravel(), [0.0, -0.5])
