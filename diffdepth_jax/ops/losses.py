"""Depth losses with a validity mask, `(prediction, target, valid_mask) -> one value per image`.

Values outside the mask may be anything (0, NaN, inf): they are replaced before any arithmetic, also
in the prediction, so they affect neither the loss nor its gradient. An image without valid pixels
has loss 0 and no gradient.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffdepth_jax.ops.order_statistics import masked_median, weights_of_smallest

Depth = Float[Array, "b h w 1"]
Mask = Bool[Array, "b h w 1"]

# How scale and shift are aligned: both sides to median 0 and mean absolute deviation 1, with or
# without the largest residuals, or the prediction to the label by least squares.
SsiForm = Literal["median", "trimmed", "least_squares"]

_AXES = (1, 2, 3)
# Relative to the largest magnitude: a smaller mean deviation is rounding error.
_FLAT = 1e-6


def l1(
    prediction: Depth, target: Depth, valid_mask: Mask, *, max_depth: float
) -> Float[Array, " b"]:
    """Mean absolute error in metres, with both sides clamped to [0, max_depth] (DiffusionDepth's
    `L1`).

    Clamped predictions get no gradient.
    """
    return _masked_mean(
        jnp.abs(_clamped_error(prediction, target, valid_mask, max_depth)), valid_mask
    )


def l2(
    prediction: Depth, target: Depth, valid_mask: Mask, *, max_depth: float
) -> Float[Array, " b"]:
    """Mean squared error in square metres, clamped as in `l1` (DiffusionDepth's `L2`)."""
    error = _clamped_error(prediction, target, valid_mask, max_depth)
    return _masked_mean(error**2, valid_mask)


def silog(
    prediction: Depth,
    target: Depth,
    valid_mask: Mask,
    *,
    scale: float = 10.0,
    variance_focus: float = 0.85,
    offset: float = 1e-3,
    ddof: Literal[0, 1] = 0,
    reduction: Literal["image", "batch"] = "image",
) -> Float[Array, "..."]:
    """Scale-invariant log error, `scale * sqrt(var(g) + (1 - variance_focus) * mean(g)^2)`.

    g = log(prediction + offset) - log(target + offset). The defaults are the common choice (Eigen
    et al. 2014; BTS). DiffusionDepth's `Sig` is `scale=2, ddof=1, reduction="batch"`.

    Args:
        prediction, target: metres; negative predictions count as 0.
        valid_mask: where it is True, targets must be positive.
        scale, variance_focus, offset: see above.
        ddof: 0 for the biased variance, 1 for the unbiased one.
        reduction: "image" for one value per image [b]; "batch" pools all pixels into one scalar.
    """
    log_prediction, log_target = _logs(prediction, target, valid_mask, offset)
    axes = _AXES if reduction == "image" else (0, 1, 2, 3)
    error = jnp.where(valid_mask, log_prediction - log_target, 0.0)
    count = jnp.sum(valid_mask, axes, keepdims=True).astype(error.dtype)
    mean = jnp.sum(error, axes, keepdims=True) / jnp.maximum(count, 1.0)
    deviation = jnp.where(valid_mask, error - mean, 0.0)
    variance = jnp.sum(deviation**2, axes) / jnp.maximum(jnp.squeeze(count, axes) - ddof, 1.0)
    squared = variance + (1.0 - variance_focus) * jnp.squeeze(mean, axes) ** 2
    # The square root has no finite gradient at 0, where there is nothing to learn.
    positive = squared > 0.0
    return scale * jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def log_l1(
    prediction: Depth, target: Depth, valid_mask: Mask, *, offset: float = 1e-3
) -> Float[Array, " b"]:
    """Mean absolute error of log(depth + offset), approximately the relative error.

    Args:
        prediction, target: metres; negative predictions count as 0.
        valid_mask: where it is True, targets must not be negative.
        offset: metres.
    """
    log_prediction, log_target = _logs(prediction, target, valid_mask, offset)
    return _masked_mean(jnp.abs(log_prediction - log_target), valid_mask)


def relative_l1(prediction: Depth, target: Depth, valid_mask: Mask) -> Float[Array, " b"]:
    """Mean of |prediction - target| / prediction (md4all's `abs_rel`, for inverse depth).

    As published, gradients also flow through the denominator.

    Args:
        prediction: positive where valid.
        target: in the same unit.
        valid_mask: which pixels count.
    """
    prediction = jnp.where(valid_mask, prediction, 1.0)
    target = jnp.where(valid_mask, target, 1.0)
    return _masked_mean(jnp.abs(prediction - target) / prediction, valid_mask)


class AlignedResidual(NamedTuple):
    """A prediction's error after removing scale and shift.

    Attributes:
        residual: [b, h, w, 1], prediction - target; 0 outside the mask and in images without a
            usable label.
        flat_label: [b], whether the label is constant (up to rounding) or no pixel is valid: such a
            label has no scale, and the image's residual is 0.
        flat_prediction: [b], the same for the prediction. It is replaced by its mean or median and
            gets no gradient, which would be infinite.
    """

    residual: Depth
    flat_label: Bool[Array, " b"]
    flat_prediction: Bool[Array, " b"]


def aligned_residual(
    prediction: Depth, target: Depth, valid_mask: Mask, *, form: SsiForm = "median"
) -> AlignedResidual:
    """The residual, invariant to the prediction's scale and shift in each image.

    Scale and shift are computed from the valid pixels, and gradients flow through them (Ranftl et
    al. 2020, arXiv:1907.01341, section 5).

    Args:
        prediction, target: both depth or both inverse depth, in any unit.
        valid_mask: which pixels count.
        form: "median" and "trimmed": each side minus its median t, over its mean absolute deviation
            s = mean |d - t| from it. The result does not depend on the target's unit either.
            "least_squares": the prediction is scaled and shifted to minimise the sum of squares, in
            the target's unit.
    """
    centre = _mean if form == "least_squares" else masked_median
    prediction, deviation, usable = _centred(prediction, valid_mask, centre)
    target, label_deviation, labelled = _centred(target, valid_mask, centre)
    if form == "least_squares":
        scale = jnp.sum(prediction * target, _AXES, keepdims=True)
        scale /= jnp.where(usable, jnp.sum(prediction**2, _AXES, keepdims=True), 1.0)
        prediction *= scale
    else:
        prediction /= jnp.where(usable, deviation, 1.0)
        target /= jnp.where(labelled, label_deviation, 1.0)
    residual = jnp.where(usable, prediction, 0.0) - target
    residual = jnp.where(valid_mask & labelled, residual, 0.0)
    return AlignedResidual(residual, ~labelled[:, 0, 0, 0], ~usable[:, 0, 0, 0])


def ssi(
    residual: Depth, valid_mask: Mask, *, form: SsiForm = "median", trim: float = 0.2
) -> Float[Array, " b"]:
    """Scale- and shift-invariant loss of a residual from `aligned_residual` with the same form.

    "median": 1/(2M) sum |r| over the M valid pixels (L_ssimae of Ranftl et al. 2020, section 5; the
    form of Tosi et al. 2024, arXiv:2407.16698). "trimmed": the same without the largest residuals,
    still over 2M (L_ssitrim). "least_squares": 1/(2M) sum r^2 (L_ssimse).

    Args:
        residual: 0 where not valid.
        valid_mask: which pixels count.
        form: see above.
        trim: fraction of pixels, those with the largest residuals, that "trimmed" leaves out;
            floor((1 - trim) * M) of M pixels remain.
    """
    errors = residual**2 if form == "least_squares" else jnp.abs(residual)
    if form == "trimmed":
        errors *= weights_of_smallest(errors, valid_mask, 1.0 - trim)
    return 0.5 * _masked_mean(errors, valid_mask)


def multi_scale_gradient(
    residual: Depth, valid_mask: Mask, *, num_scales: int = 4
) -> Float[Array, " b"]:
    """Gradient loss: differences of neighbouring residuals, which aligns edges with the label's.

    The sum over scales of 1/M sum |R(y, x + 1) - R(y, x)| + |R(y + 1, x) - R(y, x)| over the pairs
    of valid pixels (L_reg of Ranftl et al. 2020, section 5, after Li and Snavely 2018). Scale k
    takes every 2^k-th row and column, and M is the number of its valid pixels, as in the authors'
    code.

    Args:
        residual: for example from `aligned_residual`; may be anything where not valid.
        valid_mask: which pixels count.
        num_scales: number of scales; 4 as published.
    """
    residual = jnp.where(valid_mask, residual, 0.0)
    total = jnp.zeros(residual.shape[0])
    for scale in range(num_scales):
        step = slice(None, None, 2**scale)
        values, mask = residual[:, step, step], valid_mask[:, step, step]
        across = jnp.abs(values[:, :, 1:] - values[:, :, :-1])
        down = jnp.abs(values[:, 1:] - values[:, :-1])
        count = jnp.maximum(jnp.sum(mask, _AXES), 1).astype(values.dtype)
        for differences, pairs in (
            (across, mask[:, :, 1:] & mask[:, :, :-1]),
            (down, mask[:, 1:] & mask[:, :-1]),
        ):
            total += jnp.sum(jnp.where(pairs, differences, 0.0), _AXES) / count
    return total


def _logs(
    prediction: Array, target: Array, valid_mask: Array, offset: float
) -> tuple[Array, Array]:
    log_prediction = jnp.log(jnp.maximum(jnp.where(valid_mask, prediction, 1.0), 0.0) + offset)
    return log_prediction, jnp.log(jnp.where(valid_mask, target, 1.0) + offset)


def _centred(
    values: Array, valid_mask: Array, centre: Callable[[Array, Array], Array]
) -> tuple[Array, Array, Array]:
    """Valid values minus their centre, otherwise 0; their mean deviation; whether that is
    non-zero."""
    values = jnp.where(valid_mask, values, 0.0)
    largest = jnp.max(jnp.abs(values), _AXES, keepdims=True)
    values = jnp.where(valid_mask, values - centre(values, valid_mask), 0.0)
    deviation = _masked_mean(jnp.abs(values), valid_mask)[:, None, None, None]
    # Also True for NaN, so that a diverged prediction shows up.
    return values, deviation, ~(deviation <= _FLAT * largest)


def _mean(values: Array, valid_mask: Array) -> Array:
    return _masked_mean(values, valid_mask)[:, None, None, None]


def _clamped_error(prediction: Array, target: Array, valid_mask: Array, max_depth: float) -> Array:
    prediction = jnp.clip(jnp.where(valid_mask, prediction, 0.0), 0.0, max_depth)
    target = jnp.clip(jnp.where(valid_mask, target, 0.0), 0.0, max_depth)
    return prediction - target


def _masked_mean(values: Array, valid_mask: Array) -> Array:
    count = jnp.sum(valid_mask, _AXES).astype(values.dtype)
    return jnp.sum(jnp.where(valid_mask, values, 0.0), _AXES) / jnp.maximum(count, 1.0)
