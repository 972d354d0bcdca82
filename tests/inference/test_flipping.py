"""The average of the predictions of an image and its mirror image."""

import numpy as np
import pytest

from diffdepth_jax.inference import flipping


def literal(first, second):
    """md4all's average of two inverse depths, pixel by pixel."""
    height, width = first.shape
    result = np.empty((height, width))
    for row, column in np.ndindex(height, width):
        x, mirrored_x = column / (width - 1), (width - 1 - column) / (width - 1)
        left = 1 - min(max(20 * (x - 0.05), 0), 1)
        right = 1 - min(max(20 * (mirrored_x - 0.05), 0), 1)
        a, b = first[row, column], second[row, column]
        result[row, column] = right * a + left * b + (1 - left - right) * 0.5 * (a + b)
    return result


def maps(width):
    return np.random.default_rng(width).uniform(0.01, 1, (2, 3, width)).astype(np.float32)


def test_the_plain_average_is_the_mean_of_the_maps():
    first, second = maps(20)
    for output in ("metric_depth", "relative_disparity"):
        average = flipping.average(first, second, output=output)
        np.testing.assert_array_equal(average, (first + second) / 2)


@pytest.mark.parametrize("width", [23, 64, 200])
def test_ramps_at_the_borders_in_inverse_depth(width):
    first, second = maps(width)
    average = flipping.average(first, second, output="relative_disparity", how="inverse_depth")
    np.testing.assert_allclose(average, literal(first, second), rtol=1e-6)
    assert average.dtype == np.float32
    assert (average[:, 0] == second[:, 0]).all() and (average[:, -1] == first[:, -1]).all()
    average = flipping.average(first, second, output="metric_depth", how="inverse_depth")
    np.testing.assert_allclose(average, 1 / literal(1 / first, 1 / second), rtol=1e-6)


def test_nothing_is_divided_by_zero():
    depth = np.array([[0.0, -1.0, 0.0, 4.0]] * 2, np.float32)
    average = flipping.average(depth, depth, how="inverse_depth")
    np.testing.assert_allclose(average, [[1e-6, 1e-6, 1e-6, 4.0]] * 2, rtol=1e-6)
