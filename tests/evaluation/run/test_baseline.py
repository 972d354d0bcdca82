import numpy as np
import pytest

from diffdepth_jax.evaluation.run.baseline import median_depth_map


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_dense_maps_equal_numpys_median(count):
    depths = np.random.default_rng(count).uniform(1, 50, (count, 6, 9)).astype(np.float32)
    result = median_depth_map(iter(depths))
    np.testing.assert_allclose(result, np.median(depths, axis=0), rtol=1e-6)
    assert result.dtype == np.float32


def test_sparse_maps_equal_the_median_of_the_measured_values():
    generator = np.random.default_rng(0)
    depths = generator.uniform(1, 50, (9, 6, 9)).astype(np.float32)
    depths[generator.random(depths.shape) < 0.7] = 0
    result = median_depth_map(depths)
    measured = (depths > 0).any(axis=0)
    assert measured.any() and not measured.all()
    for row, column in np.argwhere(measured):
        values = depths[:, row, column]
        assert result[row, column] == pytest.approx(np.median(values[values > 0]))


def test_pixels_never_measured_get_the_median_of_the_row_or_of_the_map():
    depth = np.array([[0, 2, 4], [np.nan, 0, -1], [7, 7, 10]], np.float32)
    expected = [[3, 2, 4], [7, 7, 7], [7, 7, 10]]
    np.testing.assert_array_equal(median_depth_map([depth]), expected)


def test_sizes_may_differ():
    small = np.array([[1, 2], [3, 4]], np.float32)
    large = small.repeat(2, 0).repeat(2, 1) * 3
    np.testing.assert_array_equal(median_depth_map([small, large]), small * 2)
    assert median_depth_map([small, large], size=(4, 4)).shape == (4, 4)


def test_no_depth_at_all_is_an_error():
    with pytest.raises(ValueError, match="no depth map"):
        median_depth_map([])
    with pytest.raises(ValueError, match="none of the 2"):
        median_depth_map([np.zeros((2, 2)), np.zeros((2, 2))])
