import numpy as np
import pytest

from diffdepth_jax.evaluation import alignment


@pytest.fixture
def target():
    return np.random.default_rng(0).uniform(1, 60, (12, 20))


@pytest.fixture
def mask():
    return np.random.default_rng(1).random((12, 20)) < 0.5


def test_none_changes_nothing(target, mask):
    prediction = target * 2
    np.testing.assert_array_equal(alignment.none(prediction, target, mask), prediction)


def test_median_uses_the_valid_pixels_only(target, mask):
    prediction = np.where(mask, target / 7, 1e9)
    aligned = alignment.median(prediction, target, mask)
    np.testing.assert_allclose(aligned[mask], target[mask], rtol=1e-12)
    np.testing.assert_allclose(aligned[~mask], 7e9, rtol=1e-12)


def test_median_of_a_prediction_around_zero_is_an_error(target, mask):
    with pytest.raises(ValueError, match="median is -1"):
        alignment.median(np.full_like(target, -1), target, mask)


def test_lsq_depth_undoes_scale_and_shift(target, mask):
    prediction = np.where(mask, (target - 3) / 5, np.nan)
    np.testing.assert_allclose(
        alignment.lsq_depth(prediction, target, mask)[mask], target[mask], rtol=1e-10
    )


def test_lsq_disparity_undoes_scale_and_shift_of_inverse_depth(target, mask):
    disparity = np.where(mask, 100 / target - 4, -1e3)
    aligned = alignment.lsq_disparity(disparity, target, mask, floor=1 / 80)
    np.testing.assert_allclose(aligned[mask], target[mask], rtol=1e-10)
    np.testing.assert_allclose(aligned[~mask], 80)  # not positive: at the floor


@pytest.mark.parametrize("name", ["lsq_depth", "lsq_disparity"])
def test_least_squares_equal_numpys_solver(target, mask, name):
    prediction = np.random.default_rng(2).normal(5, 1, target.shape)
    wanted = target if name == "lsq_depth" else 1 / target
    design = np.stack([prediction[mask], np.ones(mask.sum())], axis=1)
    (scale, shift), *_ = np.linalg.lstsq(design, wanted[mask], rcond=None)
    fitted = scale * prediction + shift
    expected = fitted if name == "lsq_depth" else 1 / np.maximum(fitted, 1e-3)
    aligned = alignment.METHODS[name](prediction, target, mask)
    np.testing.assert_allclose(aligned, expected, rtol=1e-9)


def test_a_constant_prediction_is_aligned_to_the_mean(target, mask):
    aligned = alignment.lsq_depth(np.ones_like(target), target, mask)
    np.testing.assert_allclose(aligned, target[mask].mean())


@pytest.mark.parametrize("name", ["median", "lsq_depth", "lsq_disparity"])
def test_predictions_that_are_not_finite_take_no_part_in_the_fit(target, mask, name):
    row, column = np.argwhere(mask)[0]
    prediction = 1 / target if name == "lsq_disparity" else target / 2
    prediction[row, column] = np.nan
    aligned = alignment.METHODS[name](prediction, target, mask)
    assert np.isnan(aligned[row, column])
    mask[row, column] = False
    np.testing.assert_allclose(aligned[mask], target[mask], rtol=1e-9)
    with pytest.raises(ValueError, match="finite prediction; there are 0"):
        alignment.METHODS[name](np.full_like(target, np.nan), target, mask)
