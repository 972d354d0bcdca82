"""Attention against its definition in float64 NumPy, and its gradient by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from diffdepth_jax.ops.attention import attention


def draws(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in shapes]


def literal(query, key, value, bias):
    result = np.zeros_like(query)
    for image in range(query.shape[0]):
        for head in range(query.shape[2]):
            logits = query[image, :, head] @ key[image, :, head].T / query.shape[-1] ** 0.5
            weights = np.exp(logits + bias[head])
            weights /= weights.sum(-1, keepdims=True)
            result[image, :, head] = weights @ value[image, :, head]
    return result


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # each has its own form
def test_definition_and_gradient(with_bias, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    query, key, value, bias = draws((2, 5, 3, 4), (2, 7, 3, 4), (2, 7, 3, 4), (3, 5, 7))
    bias *= with_bias
    want = literal(query, key, value, bias)
    arrays = [jnp.asarray(each, jnp.float32) for each in (query, key, value)]
    arrays += [jnp.asarray(bias, jnp.float32)] * with_bias
    np.testing.assert_allclose(attention(*arrays), want, rtol=1e-5, atol=1e-6)
    check_grads(
        lambda *arrays: attention(*map(jnp.asarray, arrays)), arrays, 1, modes=["rev"], rtol=2e-3
    )


def test_large_logits_do_not_overflow():
    query, key, value = (
        jnp.asarray(each, jnp.float32) for each in draws((1, 5, 2, 4), (1, 7, 2, 4), (1, 7, 2, 4))
    )
    assert np.isfinite(attention(1e4 * query, key, value)).all()


def test_half_precision_affects_only_the_products():
    arrays = [jnp.asarray(each, jnp.bfloat16) for each in draws(*[(1, 64, 2, 16)] * 3)]
    got = attention(*arrays)
    assert got.dtype == jnp.bfloat16
    want = attention(*[each.astype(jnp.float32) for each in arrays])
    error = np.linalg.norm(np.float32(got) - want) / np.linalg.norm(want)
    assert error < 6e-3  # three roundings to 8 bits
