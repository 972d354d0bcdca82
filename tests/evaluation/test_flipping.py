import numpy as np
import pytest

from diffdepth_jax.evaluation import flipping


def literal(first, second):
    """md4all's definition of two inverse depths, pixel by pixel."""
    height, width = first.shape
    result = np.empty((height, width))
    for row, column in np.ndindex(height, width):
        x, mirrored_x = column / (width - 1), (width - 1 - column) / (width - 1)
        left = 1 - min(max(20 * (x - 0.05), 0), 1)
        right = 1 - min(max(20 * (mirrored_x - 0.05), 0), 1)
        a, b = first[row, column], second[row, column]
        result[row, column] = right * a + left * b + (1 - left - right) * 0.5 * (a + b)
    return result


@pytest.mark.parametrize("width", [23, 64, 200])
def test_ramps_at_the_borders(width):
    first, second = np.random.default_rng(width).uniform(0.01, 1, (2, 3, width))
    average = flipping.average_with_ramps(first, second)
    np.testing.assert_allclose(average, literal(first, second), rtol=1e-12)
    assert (average[:, 0] == second[:, 0]).all() and (average[:, -1] == first[:, -1]).all()


@pytest.mark.parametrize("predicts", ["depth", "disparity"])
def test_a_prediction_function_is_averaged_in_inverse_depth(predicts):
    image = np.random.default_rng(0).integers(1, 99, (4, 30, 3), np.uint8)

    def predict(image):
        assert image.flags["C_CONTIGUOUS"]
        prediction = image[..., 0].astype(np.float32)
        prediction[:, :15] += 2  # the left side of whatever it sees
        return prediction

    first = predict(image).astype(np.float64)
    second = predict(image[:, ::-1].copy())[:, ::-1].astype(np.float64)
    averaged = flipping.in_inverse_depth(predict, predicts=predicts)(image)
    if predicts == "depth":
        np.testing.assert_allclose(averaged, 1 / literal(1 / first, 1 / second), rtol=1e-9)
    else:
        np.testing.assert_allclose(averaged, literal(first, second), rtol=1e-9)


def test_nothing_is_divided_by_zero():
    inverse = flipping.inverse(np.array([0.0, -1.0, np.inf, 4.0]))
    np.testing.assert_array_equal(inverse, [1e6, 1e6, 0, 0.25])
