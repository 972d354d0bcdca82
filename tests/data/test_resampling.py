"""Resampling as OpenCV and PyTorch compute it. (Bicubic: tests/inference/test_preprocessing.py.)"""

import numpy as np
import pytest

from diffdepth_jax.data import resampling


def test_bilinear_resize_keeps_corners_and_planes():
    plane = np.add.outer(np.arange(4.0), 10 * np.arange(6.0))
    resized = resampling.resize(plane, (7, 11), "bilinear", align_corners=True)
    np.testing.assert_allclose(
        resized, np.add.outer(np.linspace(0, 3, 7), 10 * np.linspace(0, 5, 11)), rtol=1e-12
    )
    np.testing.assert_array_equal(
        resampling.resize(plane, (4, 6), "bilinear", align_corners=True), plane
    )
    assert resampling.resize(plane, (1, 1), "bilinear", align_corners=True).tolist() == [[0.0]]


@pytest.mark.parametrize("size", [(3, 5), (12, 16), (7, 8)])
def test_bilinear_resize_with_half_pixel_centres(size):
    array = np.random.default_rng(0).normal(size=(7, 8))
    resized = resampling.resize(array, size, "bilinear")

    def at(row, column):
        """OpenCV's definition, pixel by pixel."""
        y = min(max((row + 0.5) * 7 / size[0] - 0.5, 0), 6)
        x = min(max((column + 0.5) * 8 / size[1] - 0.5, 0), 7)
        i, j = int(y), int(x)
        v, u = y - i, x - j
        down, right = min(i + 1, 6), min(j + 1, 7)
        top = (1 - u) * array[i, j] + u * array[i, right]
        return (1 - v) * top + v * ((1 - u) * array[down, j] + u * array[down, right])

    for row, column in np.ndindex(size):
        assert resized[row, column] == pytest.approx(at(row, column), abs=1e-12)
