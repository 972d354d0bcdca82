"""Medians and smallest values against NumPy's sort, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.ops.order_statistics import masked_median, weights_of_smallest

_median = jax.jit(masked_median)


def _maps(seed=0, shape=(6, 5, 7, 1)):
    """Values of all magnitudes with many ties; the masks select odd and even numbers of them."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-8, 9, shape)
    values = np.where(rng.random(shape) < 0.3, rng.integers(-1, 2, shape), values)
    mask = rng.random(shape) < 0.6
    mask[0] = True
    for index in range(1, shape[0]):  # alternately odd and even
        first = np.argmax(mask[index].ravel())
        mask[index].ravel()[first] ^= bool((mask[index].sum() + index) % 2)
    return values.astype(np.float32), mask


@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf, -np.inf])
def test_the_median_equals_numpys(garbage):
    values, mask = _maps()
    assert {int(each.sum()) % 2 for each in mask} == {0, 1}
    dirty = jnp.asarray(np.where(mask, values, garbage), jnp.float32)
    want = [np.median(v[m]) for v, m in zip(values, mask, strict=True)]
    np.testing.assert_array_equal(_median(dirty, jnp.asarray(mask)).ravel(), np.float32(want))


def test_the_median_of_few_values():
    values = jnp.asarray([[3.0, -1.0, 8.0]] * 4)[..., None, None]
    mask = jnp.asarray([[0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]], bool)[..., None, None]
    got = masked_median(values, mask)
    np.testing.assert_array_equal(got.ravel(), [0.0, 8.0, 1.0, 3.0])
    gradient = jax.grad(lambda values: masked_median(values, mask).sum())(values)
    want = [[0, 0, 0], [0, 0, 1], [0.5, 0.5, 0], [1, 0, 0]]
    np.testing.assert_array_equal(gradient[..., 0, 0], want)


def test_equal_middle_values_share_the_gradient():
    values = jnp.asarray([[2.0, 5.0, 2.0, 1.0, 9.0, 2.0]])[..., None, None]
    mask = jnp.ones_like(values, bool)
    gradient = jax.grad(lambda values: masked_median(values, mask).sum())(values)
    np.testing.assert_allclose(gradient.ravel(), [1 / 3, 0, 1 / 3, 0, 0, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.8, 1.0])
def test_the_smallest_values_match_a_sorted_list(share):
    values, mask = _maps(1)
    values = np.abs(values)
    weights = weights_of_smallest(jnp.asarray(values), jnp.asarray(mask), share)
    for image, (v, m) in enumerate(zip(values, mask, strict=True)):
        kept = np.sort(v[m])[: int(np.floor(round(share * m.sum(), 6)))]
        np.testing.assert_allclose(
            np.sum(np.float64(weights[image]) * v), np.float64(kept).sum(), rtol=1e-6
        )
        np.testing.assert_allclose(weights[image].sum(), len(kept), rtol=1e-6)
        assert not weights[image][~m].any()


def test_a_share_that_is_a_whole_number_is_not_rounded_down():
    """0.8 * 35 is 28, but not in float32, and 1 - 0.2 is not quite 0.8."""
    for count in (35, 70):
        ordered = jnp.arange(count, dtype=jnp.float32).reshape(1, count, 1, 1)
        weights = weights_of_smallest(ordered, jnp.ones_like(ordered, bool), 1.0 - 0.2)
        assert weights.sum() == count * 4 // 5
