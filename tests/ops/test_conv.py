"""conv3x3 against a literal float64 loop and XLA's own gradient, also inside a scan."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.ops.conv import conv3x3

SHAPES = [(2, 6, 9, 5, 7), (1, 1, 1, 3, 2), (1, 2, 5, 4, 4)]  # batch, height, width, channels


def _arrays(shape, seed=0):
    b, h, w, i, o = shape
    rng = np.random.default_rng(seed)
    return tuple(
        rng.standard_normal(size).astype(np.float32)
        for size in ((b, h, w, i), (3, 3, i, o), (b, h, w, o))
    )


def _literal(inputs, kernel):
    """Float64: out[y, x] = sum over dy, dx of in[y + dy - 1, x + dx - 1] @ kernel[dy, dx]."""
    b, h, w, _ = inputs.shape
    padded = np.pad(inputs.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    output = np.zeros((b, h, w, kernel.shape[-1]))
    for y in range(3):
        for x in range(3):
            output += padded[:, y : y + h, x : x + w] @ kernel[y, x].astype(np.float64)
    return output


def _literal_gradients(inputs, kernel, cotangent):
    _, h, w, _ = inputs.shape
    padded = np.pad(inputs.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    padded_gradient, kernel_gradient = np.zeros_like(padded), np.zeros(kernel.shape)
    for y in range(3):
        for x in range(3):
            window = padded[:, y : y + h, x : x + w]
            kernel_gradient[y, x] = np.einsum("bhwi,bhwo->io", window, cotangent)
            padded_gradient[:, y : y + h, x : x + w] += cotangent @ kernel[y, x].T
    return padded_gradient[:, 1:-1, 1:-1], kernel_gradient


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", ["auto", "xla", "custom"])
def test_values_and_gradients_match_float64(shape, gradient):
    inputs, kernel, cotangent = _arrays(shape)
    output, pullback = jax.vjp(lambda a, k: conv3x3(a, k, gradient=gradient), inputs, kernel)
    np.testing.assert_allclose(output, _literal(inputs, kernel), atol=2e-5)
    for got, want in zip(
        pullback(jnp.asarray(cotangent)),
        _literal_gradients(inputs, kernel, cotangent),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, atol=5e-5)


def test_bfloat16_gradients_keep_the_dtype():
    inputs, kernel, _ = (jnp.asarray(a, jnp.bfloat16) for a in _arrays((1, 8, 8, 8, 8)))

    def gradients(mode):
        def loss(a, k):
            return conv3x3(a, k, gradient=mode).astype(jnp.float32).sum()

        return jax.grad(loss, (0, 1))(inputs, kernel)

    for got, want in zip(gradients("custom"), gradients("xla"), strict=True):
        assert got.dtype == want.dtype == jnp.bfloat16
        difference = np.linalg.norm(np.float32(got) - np.float32(want))
        assert difference < 2e-2 * np.linalg.norm(np.float32(want))


def _scan_gradient(gradient, rematerialise):
    def body(carry, _, kernel):
        return jnp.tanh(conv3x3(carry, kernel, gradient=gradient)), None

    def loss(inputs, kernel):
        step = jax.checkpoint(body) if rematerialise else body
        final, _ = jax.lax.scan(lambda c, x: step(c, x, kernel), inputs, None, length=3)
        return (final**2).sum()

    return jax.jit(jax.grad(loss, (0, 1)))


@pytest.mark.parametrize("rematerialise", [False, True])
def test_scan_gradient_matches_xla(rematerialise):
    inputs, kernel, _ = _arrays((2, 7, 5, 6, 6))
    got = _scan_gradient("custom", rematerialise)(inputs, kernel / 7)
    want = _scan_gradient("xla", rematerialise)(inputs, kernel / 7)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the slow path is XLA:CPU's")
def test_scan_gradient_uses_only_the_form_that_is_fast_on_the_cpu():
    """On two idle cores XLA's own gradient, in other forms, took 13 times as long
    (results/sampler_gradient.csv)."""
    inputs, kernel, _ = _arrays((2, 12, 20, 16, 16))
    forms = {}
    for gradient in ("custom", "xla"):
        compiled = _scan_gradient(gradient, False).lower(inputs, kernel).compile()
        forms[gradient] = re.findall(r"dim_labels=([\w>-]+)", compiled.as_text())
    canonical = "b01f_01io->b01f"
    # The kernel's gradient is matrix products.
    assert len(forms["custom"]) == 2 and set(forms["custom"]) == {canonical}
    assert set(forms["xla"]) > {canonical}


def test_unknown_gradient_is_named():
    inputs, kernel, _ = _arrays(SHAPES[0])
    with pytest.raises(Exception, match="cudnn"):
        conv3x3(inputs, kernel, gradient="cudnn")
