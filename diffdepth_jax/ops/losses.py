"""Depth losses under a validity mask, `(prediction, target, valid_mask) -> one value per image`.

Values outside the mask may be anything (0, NaN, inf): they are replaced before any arithmetic, in
the prediction too, so that neither the loss nor its gradient sees them. An image without a valid
pixel gives 0 and no gradient.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Depth = Float[Array, "b h w 1"]
Mask = Bool[Array, "b h w 1"]


def l1(
    prediction: Depth, target: Depth, valid_mask: Mask, *, max_depth: float
) -> Float[Array, " b"]:
    """Mean absolute error in metres, both sides clamped to [0, max_depth] (DiffusionDepth `L1`).

    A prediction beyond the clamp gets no gradient.
    """
    return _masked_mean(
        jnp.abs(_clamped_error(prediction, target, valid_mask, max_depth)), valid_mask
    )


def l2(
    prediction: Depth, target: Depth, valid_mask: Mask, *, max_depth: float
) -> Float[Array, " b"]:
    """Mean squared error in square metres, clamped as `l1` (DiffusionDepth `L2`)."""
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

    g = log(prediction + offset) - log(target + offset). The defaults are the field's habit (Eigen
    et al. 2014; BTS). DiffusionDepth's `Sig` is `scale=2, ddof=1, reduction="batch"`.

    Args:
        prediction, target: metres; negative predictions count as 0.
        valid_mask: targets must be positive there.
        scale, variance_focus, offset: see above.
        ddof: 0 for the biased variance, 1 for the unbiased one.
        reduction: "image" for one value per image [b]; "batch" pools all pixels to one scalar.
    """
    log_prediction = jnp.log(jnp.maximum(jnp.where(valid_mask, prediction, 1.0), 0.0) + offset)
    log_target = jnp.log(jnp.where(valid_mask, target, 1.0) + offset)
    axes = (1, 2, 3) if reduction == "image" else (0, 1, 2, 3)
    error = jnp.where(valid_mask, log_prediction - log_target, 0.0)
    count = jnp.sum(valid_mask, axes, keepdims=True).astype(error.dtype)
    mean = jnp.sum(error, axes, keepdims=True) / jnp.maximum(count, 1.0)
    deviation = jnp.where(valid_mask, error - mean, 0.0)
    variance = jnp.sum(deviation**2, axes) / jnp.maximum(jnp.squeeze(count, axes) - ddof, 1.0)
    squared = variance + (1.0 - variance_focus) * jnp.squeeze(mean, axes) ** 2
    # The root has no finite gradient at 0, where there is nothing left to learn.
    positive = squared > 0.0
    return scale * jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def _clamped_error(prediction, target, valid_mask, max_depth):
    prediction = jnp.clip(jnp.where(valid_mask, prediction, 0.0), 0.0, max_depth)
    target = jnp.clip(jnp.where(valid_mask, target, 0.0), 0.0, max_depth)
    return prediction - target


def _masked_mean(values, valid_mask):
    count = jnp.sum(valid_mask, (1, 2, 3)).astype(values.dtype)
    return jnp.sum(jnp.where(valid_mask, values, 0.0), (1, 2, 3)) / jnp.maximum(count, 1.0)
