"""Losses against float64 NumPy on the valid pixels, and indifference to invalid pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.ops import losses

LOSSES = {
    "l1": lambda *arrays: losses.l1(*arrays, max_depth=10.0),
    "l2": lambda *arrays: losses.l2(*arrays, max_depth=10.0),
    "silog": losses.silog,
    "log_l1": losses.log_l1,
    "relative_l1": losses.relative_l1,
}
FORMS = ("median", "trimmed", "least_squares")


def _ssi(form, gradient):
    def loss(prediction, target, valid_mask):
        residual = losses.aligned_residual(prediction, target, valid_mask, form=form).residual
        if gradient:
            return losses.multi_scale_gradient(residual, valid_mask)
        return losses.ssi(residual, valid_mask, form=form)

    return loss


for _form in FORMS:
    LOSSES[f"ssi_{_form}"] = jax.jit(_ssi(_form, gradient=False))
    LOSSES[f"ssi_gradient_{_form}"] = jax.jit(_ssi(_form, gradient=True))


@functools.cache
def _step(name):
    """The sum over images and its gradient, compiled once."""
    return jax.jit(jax.value_and_grad(lambda *arrays: LOSSES[name](*arrays).sum()))


def _maps(seed=0):
    """Depths up to 14 m, some beyond the clamp at 10 m."""
    rng = np.random.default_rng(seed)
    prediction = rng.uniform(0.5, 14.0, (3, 4, 5, 1))
    target = rng.uniform(0.5, 14.0, (3, 4, 5, 1))
    return prediction, target, rng.random((3, 4, 5, 1)) < 0.6


def _device(prediction, target, valid_mask):
    return (
        jnp.asarray(prediction, jnp.float32),
        jnp.asarray(target, jnp.float32),
        jnp.asarray(valid_mask),
    )


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_clamped_errors_are_averaged_over_valid_pixels(name, power):
    prediction, target, valid_mask = _maps()
    want = [
        (np.abs(np.clip(p[m], 0, 10) - np.clip(t[m], 0, 10)) ** power).mean()
        for p, t, m in zip(prediction, target, valid_mask, strict=True)
    ]
    np.testing.assert_allclose(LOSSES[name](*_device(prediction, target, valid_mask)), want, 1e-5)


def _each_image(prediction, target, valid_mask):
    return zip(prediction, target, valid_mask, strict=True)


def test_errors_of_logarithms_and_of_ratios():
    prediction, target, valid_mask = _maps()
    arrays = _device(prediction, target, valid_mask)
    want = [
        np.abs(np.log(p[m] + 0.5) - np.log(t[m] + 0.5)).mean()
        for p, t, m in _each_image(prediction, target, valid_mask)
    ]
    np.testing.assert_allclose(losses.log_l1(*arrays, offset=0.5), want, rtol=1e-6)
    want = [
        (np.abs(p[m] - t[m]) / p[m]).mean()
        for p, t, m in _each_image(prediction, target, valid_mask)
    ]
    np.testing.assert_allclose(losses.relative_l1(*arrays), want, rtol=1e-6)


def test_the_relative_error_pushes_small_predictions_up_through_its_denominator():
    """|p - t| / p = t/p - 1 below the target: its slope is -t / p^2, not -1 / p."""
    arrays = _device(*(np.full((1, 1, 1, 1), value) for value in (0.5, 2.0, True)))
    gradient = jax.grad(lambda p: losses.relative_l1(p, *arrays[1:]).sum())(arrays[0])
    np.testing.assert_allclose(gradient.ravel(), [-8.0])


def _literal_residual(prediction, target, form):
    """The residual on one image's valid pixels, in float64."""
    if form == "least_squares":
        columns = np.stack([prediction, np.ones_like(prediction)], 1)
        solution, *_ = np.linalg.lstsq(columns, target)
        return columns @ solution - target
    shifted = (each - np.median(each) for each in (prediction, target))
    prediction, target = (each / np.abs(each).mean() for each in shifted)
    return prediction - target


def _literal_gradient(residual, mask, num_scales):
    total = 0.0
    for scale in range(num_scales):
        values, valid = residual[:: 2**scale, :: 2**scale], mask[:: 2**scale, :: 2**scale]
        height, width = values.shape
        total_at_scale = 0.0
        for y in range(height):
            for x in range(width):
                for dy, dx in ((0, 1), (1, 0)):
                    if y + dy < height and x + dx < width:
                        both = valid[y, x] and valid[y + dy, x + dx]
                        difference = values[y + dy, x + dx] - values[y, x] if both else 0.0
                        total_at_scale += abs(difference)
        total += total_at_scale / max(valid.sum(), 1)
    return total


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(4, 5), (13, 18)])
def test_ssi_and_its_gradient_term_are_as_published(form, size):
    rng = np.random.default_rng(3)
    prediction, target = rng.uniform(0.5, 14.0, (2, 3, *size, 1))
    valid_mask = rng.random((3, *size, 1)) < 0.7
    arrays = _device(prediction, target, valid_mask)
    wanted, wanted_gradient = [], []
    for p, t, m in _each_image(prediction, target, valid_mask):
        residual = np.zeros(m.shape)
        residual[m] = _literal_residual(p[m], t[m], form)
        errors = residual[m] ** 2 if form == "least_squares" else np.sort(np.abs(residual[m]))
        if form == "trimmed":
            errors = errors[: len(errors) * 4 // 5]
        wanted.append(errors.sum() / (2 * m.sum()))
        wanted_gradient.append(_literal_gradient(residual[..., 0], m[..., 0], 4))
    got = LOSSES[f"ssi_{form}"](*arrays)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
    got = LOSSES[f"ssi_gradient_{form}"](*arrays)
    np.testing.assert_allclose(got, wanted_gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith("ssi")])
@pytest.mark.parametrize(("scale", "shift"), [(0.01, 0.0), (3.0, -20.0), (50.0, 7.0)])
def test_ssi_is_invariant_to_the_predictions_scale_and_shift(name, scale, shift):
    prediction, target, valid_mask = _maps()
    got = LOSSES[name](*_device(scale * prediction + shift, target, valid_mask))
    want = LOSSES[name](*_device(prediction, target, valid_mask))
    np.testing.assert_allclose(got, want, rtol=2e-5)
    bent = LOSSES[name](*_device(prediction**2, target, valid_mask))
    assert (np.abs(bent - want) > 1e-3 * want).all()


@pytest.mark.parametrize("form", FORMS)
def test_how_ssi_depends_on_the_labels_scale_and_shift(form):
    """The robust forms ignore both; least squares scales with the label's unit squared."""
    prediction, target, valid_mask = _maps()
    got = LOSSES[f"ssi_{form}"](*_device(prediction, 3 * target - 5, valid_mask))
    want = LOSSES[f"ssi_{form}"](*_device(prediction, target, valid_mask))
    unit = 9 if form == "least_squares" else 1
    np.testing.assert_allclose(got, unit * want, rtol=2e-5)


@pytest.mark.parametrize("form", ["median", "trimmed"])
def test_a_negated_prediction_is_wrong_for_the_robust_forms(form):
    """Their scale is positive. That of least squares may be negative, as published."""
    _, target, valid_mask = _maps()
    arrays = _device(-target, target, valid_mask)
    assert (LOSSES[f"ssi_{form}"](*arrays) > 0.3).all()
    assert (LOSSES["ssi_least_squares"](*arrays) < 1e-9).all()


def test_the_trimmed_form_leaves_out_the_given_share():
    _, target, valid_mask = _maps()
    prediction = target + np.random.default_rng(1).standard_normal(target.shape)
    residual = losses.aligned_residual(*_device(prediction, target, valid_mask)).residual
    outlier = jnp.where(jnp.arange(5)[:, None] == 2, residual + 100.0, residual)
    values = [
        losses.ssi(outlier, jnp.asarray(valid_mask), form="trimmed", trim=trim).sum()
        for trim in (0.0, 0.2, 0.5)
    ]
    assert values[0] > values[1] > values[2]
    np.testing.assert_allclose(
        values[0], losses.ssi(outlier, jnp.asarray(valid_mask), form="median").sum(), rtol=1e-6
    )


@pytest.mark.parametrize("num_scales", [1, 2, 3])
def test_the_gradient_term_uses_every_scale(num_scales):
    residual, _, valid_mask = _maps()
    got = losses.multi_scale_gradient(
        jnp.asarray(residual, jnp.float32), jnp.asarray(valid_mask), num_scales=num_scales
    )
    want = [
        _literal_gradient(each[..., 0], mask[..., 0], num_scales)
        for each, mask in zip(residual, valid_mask, strict=True)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_a_constant_label_counts_nothing_and_is_reported(form, rounding):
    prediction, target, valid_mask = _maps()
    target[1] = 0.1 * (1 + rounding * np.random.default_rng(0).random(target[1].shape))
    valid_mask[2] = False
    arrays = _device(prediction, target, valid_mask)
    aligned = losses.aligned_residual(*arrays, form=form)
    np.testing.assert_array_equal(aligned.flat_label, [False, True, True])
    for name in (f"ssi_{form}", f"ssi_gradient_{form}"):
        values = LOSSES[name](*arrays)
        assert values[0] > 0 and (values[1:] == 0).all()
        _, gradient = _step(name)(*arrays)
        assert np.isfinite(gradient).all() and (gradient[1:] == 0).all() and gradient[0].any()


@pytest.mark.parametrize("form", FORMS)
def test_a_constant_prediction_has_a_loss_and_a_finite_gradient(form):
    """As from a relative network whose last ReLU is dead."""
    prediction, target, valid_mask = _maps()
    prediction[1] = 0.0
    arrays = _device(prediction, target, valid_mask)
    aligned = losses.aligned_residual(*arrays, form=form)
    np.testing.assert_array_equal(aligned.flat_prediction, [False, True, False])
    assert not aligned.flat_label.any()
    values, (_, gradient) = LOSSES[f"ssi_{form}"](*arrays), _step(f"ssi_{form}")(*arrays)
    assert np.isfinite(gradient).all() and (gradient[1] == 0).all() and gradient[0].any()
    assert (values > 0).all()
    if form == "median":  # the label's mean absolute deviation is 1
        np.testing.assert_allclose(values[1], 0.5, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_zeros_of_a_rectified_prediction_are_ordinary_values(form):
    """More than half of the pixels are 0, and so is the median: the scale is still the mean
    deviation, and pixels above 0 still learn."""
    _, target, valid_mask = _maps()
    cuts = [np.quantile(t[m], 0.7) for t, m in zip(target, valid_mask, strict=True)]
    raw = target - np.reshape(cuts, (-1, 1, 1, 1))
    raw, target, valid_mask = _device(raw, target, valid_mask)
    prediction = jax.nn.relu(raw)
    before, gradient = _step(f"ssi_{form}")(prediction, target, valid_mask)
    assert np.isfinite(gradient).all()
    learning = jnp.where(raw > 0, gradient, 0.0)
    # Only image 0: where all residuals above 0 have one sign, the scale fixes their sum.
    assert jnp.abs(learning[0]).sum() > 1e-3
    after, _ = _step(f"ssi_{form}")(prediction - 1e-2 * learning, target, valid_mask)
    assert after < before


@pytest.mark.parametrize("form", FORMS)
def test_gradients_flow_through_scale_and_shift(form):
    """So a step along the prediction, or along a constant, changes nothing."""
    arrays = _device(*_maps())
    _, gradient = _step(f"ssi_{form}")(*arrays)
    size = jnp.sqrt(jnp.sum(gradient**2))
    for direction in (arrays[0], jnp.ones_like(arrays[0])):
        change = jnp.abs(jnp.sum(gradient * direction, (1, 2, 3))).max()
        assert change < 1e-4 * size * jnp.sqrt(jnp.sum(direction**2))


@pytest.mark.parametrize("form", FORMS)
def test_debug_nans_finds_none_in_the_arithmetic_of_the_losses(form):
    """With an image without valid pixels, and one with a constant label."""
    prediction, target, valid_mask = _maps()
    valid_mask[1], target[2] = False, 0.3
    arrays = _device(prediction, target, valid_mask)
    with jax.disable_jit(), jax.debug_nans(True):
        for name in (f"ssi_{form}", f"ssi_gradient_{form}"):
            value, gradient = jax.value_and_grad(lambda *a, name=name: LOSSES[name](*a).sum())(
                *arrays
            )
            assert value > 0 and gradient.any()


def test_a_diverged_prediction_is_visible():
    prediction, target, valid_mask = _maps()
    prediction[0, 0, 0], valid_mask[0, 0, 0] = np.nan, True
    for form in FORMS:
        values = LOSSES[f"ssi_{form}"](*_device(prediction, target, valid_mask))
        assert np.isnan(values[0]) and np.isfinite(values[1:]).all()


def test_silog_per_image():
    prediction, target, valid_mask = _maps()
    want = []
    for p, t, m in zip(prediction, target, valid_mask, strict=True):
        error = np.log(p[m] + 1e-3) - np.log(t[m] + 1e-3)
        want.append(10 * np.sqrt((error**2).mean() - 0.85 * error.mean() ** 2))
    np.testing.assert_allclose(losses.silog(*_device(prediction, target, valid_mask)), want, 1e-5)


def test_silog_of_the_release_pools_the_batch():
    prediction, target, valid_mask = _maps()
    error = np.log(prediction[valid_mask] + 1e-3) - np.log(target[valid_mask] + 1e-3)
    want = 2 * np.sqrt(error.var(ddof=1) + 0.15 * error.mean() ** 2)
    got = losses.silog(
        *_device(prediction, target, valid_mask), scale=2.0, ddof=1, reduction="batch"
    )
    assert got.shape == ()
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf, -np.inf, -5.0])
def test_invalid_pixels_do_not_matter(name, garbage):
    """They change neither value nor gradient, whatever prediction and target hold there."""
    prediction, target, valid_mask = _maps()
    clean = _device(
        np.where(valid_mask, prediction, 1.0), np.where(valid_mask, target, 1.0), valid_mask
    )
    dirty = _device(
        np.where(valid_mask, prediction, garbage), np.where(valid_mask, target, garbage), valid_mask
    )
    for got, want in zip(_step(name)(*dirty), _step(name)(*clean), strict=True):
        np.testing.assert_array_equal(got, want)
    assert np.isfinite(_step(name)(*dirty)[1]).all()


@pytest.mark.parametrize("name", LOSSES)
def test_no_valid_pixel_gives_zero_and_no_gradient(name):
    prediction, target, valid_mask = _maps()
    valid_mask[1] = False
    arrays = _device(prediction, np.where(valid_mask, target, np.nan), valid_mask)
    values = LOSSES[name](*arrays)
    assert values[1] == 0.0 and (values[jnp.array([0, 2])] > 0).all()
    _, gradient = _step(name)(*arrays)
    assert np.isfinite(gradient).all() and (gradient[1] == 0).all()


def test_one_valid_pixel_is_enough_for_the_unbiased_variance():
    prediction, target, valid_mask = _maps()
    valid_mask[:] = False
    valid_mask[0, 0, 0, 0] = True
    arrays = _device(prediction, target, valid_mask)
    value, gradient = jax.value_and_grad(
        lambda p: losses.silog(p, *arrays[1:], ddof=1, reduction="batch")
    )(arrays[0])
    error = np.log(prediction[0, 0, 0, 0] + 1e-3) - np.log(target[0, 0, 0, 0] + 1e-3)
    np.testing.assert_allclose(value, 10 * np.sqrt(0.15) * abs(error), rtol=1e-4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_costs_nothing(name):
    _, target, valid_mask = _maps()
    target = np.minimum(target, 9.0)
    arrays = _device(target, target, valid_mask)
    value, gradient = _step(name)(*arrays)
    # Both sides are normalised in the same way, but compiled separately.
    assert value <= (1e-6 if name.startswith("ssi") else 0.0)
    assert np.isfinite(gradient).all()


def test_predictions_beyond_the_clamp_get_no_gradient():
    arrays = _device(
        np.full((1, 1, 2, 1), [[[[12.0], [8.0]]]]),
        np.full((1, 1, 2, 1), 9.0),
        np.ones((1, 1, 2, 1), bool),
    )
    gradient = jax.grad(lambda p: LOSSES["l1"](p, *arrays[1:]).sum())(arrays[0])
    np.testing.assert_allclose(gradient.ravel(), [0.0, -0.5])
