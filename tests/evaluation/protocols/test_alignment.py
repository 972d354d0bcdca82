import numpy as np
import pytest

from diffdepth_jax.evaluation.protocols import alignment


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


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_the_lower_median_is_the_lower_middle_value(count):
    generator = np.random.default_rng(count)
    prediction, target = generator.uniform(1, 9, (2, 1, count))
    mask = np.ones((1, count), bool)

    def lower(values):
        return sorted(values.ravel().tolist())[(count - 1) // 2]

    scaled = alignment.median_low(prediction, target, mask)
    np.testing.assert_allclose(scaled, prediction * (lower(target) / lower(prediction)), rtol=1e-12)
    if count % 2 == 0:
        assert np.abs(scaled - alignment.median(prediction, target, mask)).max() > 1e-6
    with pytest.raises(ValueError, match="lower median is 0"):
        alignment.median_low(np.zeros((1, count)), target, mask)


def test_a_disparity_that_is_not_positive_counts_as_near_or_far():
    target = np.array([[1.0, 2.0, 4.0, 4.0]])
    prediction = np.array([[1.0, 0.5, 0.25, -1.0]])  # 1 / target, except for the unmeasured last
    mask = np.array([[True, True, True, False]])
    near = alignment.lsq_disparity_near(7 * prediction - 3, target, mask)
    np.testing.assert_allclose(near, [[1, 2, 4, 0]], rtol=1e-12)
    far = alignment.lsq_disparity(7 * prediction - 3, target, mask, floor=0.1)
    np.testing.assert_allclose(far, [[1, 2, 4, 10]], rtol=1e-12)
    prediction[0, 3] = np.nan
    assert np.isnan(alignment.lsq_disparity_near(prediction, target, mask)[0, 3])
    constant = alignment.lsq_disparity_near(np.full((1, 4), 5.0), target, mask)
    np.testing.assert_allclose(constant, 1 / np.mean([1, 0.5, 0.25]))
