"""Resampling against literal float64 loops of PyTorch's definitions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.data import resampling
from diffdepth_jax.ops.image import (
    adaptive_average_pool,
    pad_to_multiple,
    resize_bicubic,
    resize_bilinear,
)

SIZES = [
    ((6, 8), (6, 8)),
    ((14, 26), (13, 25)),
    ((3, 5), (7, 10)),
    ((9, 7), (4, 3)),
    ((1, 1), (3, 2)),
    ((5, 4), (1, 1)),
    ((2, 3), (2, 7)),
]


def _features(size, channels=3):
    return np.random.default_rng(0).standard_normal((2, *size, channels))


@pytest.mark.parametrize(("size", "output"), SIZES)
def test_adaptive_average_pool(size, output):
    features = _features(size)
    want = np.zeros((2, *output, 3))
    for y in range(output[0]):
        for x in range(output[1]):
            top, bottom = y * size[0] // output[0], math.ceil((y + 1) * size[0] / output[0])
            left, right = x * size[1] // output[1], math.ceil((x + 1) * size[1] / output[1])
            want[:, y, x] = features[:, top:bottom, left:right].mean((1, 2))
    got = adaptive_average_pool(jnp.asarray(features, jnp.float32), output)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("size", "output"), SIZES)
def test_resize_bilinear_aligns_corners(size, output):
    features = _features(size)
    want = np.zeros((2, *output, 3))
    for y in range(output[0]):
        for x in range(output[1]):
            row = y * (size[0] - 1) / (output[0] - 1) if output[0] > 1 else 0.0
            column = x * (size[1] - 1) / (output[1] - 1) if output[1] > 1 else 0.0
            top, left = min(int(row), size[0] - 1), min(int(column), size[1] - 1)
            bottom, right = min(top + 1, size[0] - 1), min(left + 1, size[1] - 1)
            dy, dx = row - top, column - left
            want[:, y, x] = (1 - dy) * (
                (1 - dx) * features[:, top, left] + dx * features[:, top, right]
            ) + dy * ((1 - dx) * features[:, bottom, left] + dx * features[:, bottom, right])
    got = resize_bilinear(jnp.asarray(features, jnp.float32), output)
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(got[:, 0, 0], features[:, 0, 0], atol=1e-6)
    if min(output) > 1:
        np.testing.assert_allclose(got[:, -1, -1], features[:, -1, -1], atol=2e-6)


@pytest.mark.parametrize(("size", "output"), [((150, 3), (300, 2)), ((5, 301), (4, 131))])
@pytest.mark.parametrize("align_corners", [True, False])
def test_long_axes_are_resized_like_short_ones(size, output, align_corners):
    """They use other code: checked against float64, and the gradient against the transpose."""
    features = _features(size)
    resize = functools.partial(resize_bilinear, size=output, align_corners=align_corners)
    want = features
    for axis, length in enumerate(output, 1):
        want = np.moveaxis(want, axis, 0)
        if align_corners:
            position = np.linspace(0, len(want) - 1, length)
        else:
            position = (np.arange(length) + 0.5) * len(want) / length - 0.5
            position = np.clip(position, 0, len(want) - 1)
        low = np.minimum(position.astype(int), len(want) - 2)
        part = (position - low).reshape(-1, 1, 1, 1)
        want = np.moveaxis((1 - part) * want[low] + part * want[low + 1], 0, axis)
    single = jnp.asarray(features, jnp.float32)
    np.testing.assert_allclose(resize(single), want, atol=2e-6)
    cotangent = np.random.default_rng(1).standard_normal(want.shape)
    (gradient,) = jax.vjp(resize, single)[1](jnp.asarray(cotangent, jnp.float32))
    np.testing.assert_allclose(
        np.vdot(np.float64(gradient), features), np.vdot(cotangent, want), rtol=1e-5
    )
    np.testing.assert_array_equal(jax.vmap(resize)(single[None])[0], resize(single))


@pytest.mark.parametrize("output", [(9, 4), (37, 20), (3, 300)])
def test_resize_bicubic(output):
    features = _features((37, 70))
    want = [resampling.resize(each, output, "bicubic") for each in features]
    got = resize_bicubic(jnp.asarray(features, jnp.float32), output)
    np.testing.assert_allclose(got, want, atol=5e-6)


def test_resize_bicubic_by_factors_other_than_the_ratio_of_sizes():
    """As Depth Anything resizes positions: a grid of 37 by a factor of (n + 0.1) / 37 to n."""

    def kernel(distance, a=-0.75):
        if distance <= 1:
            return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a

    features = _features((37, 37))
    for output in (5, 49):
        want = np.zeros((2, output, 37, 3))
        for target in range(output):
            position = (target + 0.5) / ((output + 0.1) / 37) - 0.5
            for source in range(math.floor(position) - 1, math.floor(position) + 3):
                row = min(max(source, 0), 36)
                want[:, target] += kernel(abs(position - source)) * features[:, row]
        scales = ((output + 0.1) / 37, 1.0)
        got = resize_bicubic(jnp.asarray(features, jnp.float32), (output, 37), scales=scales)
        np.testing.assert_allclose(got, want, atol=5e-6)


def test_resize_keeps_constants():
    """Therefore the condition can be resized without the time embedding."""
    constant = jnp.full((1, 5, 7, 2), 0.37)
    np.testing.assert_allclose(resize_bilinear(constant, (11, 13)), 0.37, rtol=1e-6)


def test_padding_repeats_the_border_at_the_bottom_and_right():
    image = jnp.arange(15.0).reshape(1, 3, 5, 1)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 4, 8, 1)
    np.testing.assert_array_equal(padded[:, :3, :5], image)
    np.testing.assert_array_equal(padded[0, 3, :5, 0], image[0, 2, :, 0])
    np.testing.assert_array_equal(padded[0, :3, 7, 0], image[0, :, 4, 0])
    assert pad_to_multiple(image, 1).shape == image.shape
