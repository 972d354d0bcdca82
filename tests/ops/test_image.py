"""Resampling against literal float64 loops of PyTorch's definitions."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.ops.image import adaptive_average_pool, pad_to_multiple, resize_bilinear

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


def test_resize_keeps_constants():
    """What allows the condition to be resized without the time embedding."""
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
