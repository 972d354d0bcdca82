"""Converts the codec's logit to depth in metres and back (DiffusionDepth's `1 / sigmoid - 1`)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

# The published code clamps the sigmoid at this minimum.
MIN_SIGMOID = 1e-6
MAX_DECODED_DEPTH = 1.0 / MIN_SIGMOID - 1.0


def depth_from_logit(logit: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`1 / max(sigmoid(logit), 1e-6) - 1`, in float32.

    Computed as exp(-logit), which is equal above the clamp, because 1 / sigmoid - 1 loses precision
    at small depths and its gradient overflows at large ones. Below the clamp the gradient is 0.

    Returns:
        Depth in metres in (0, 1e6 - 1].
    """
    logit = logit.astype(jnp.float32)
    return jnp.exp(-jnp.maximum(logit, -math.log(MAX_DECODED_DEPTH)))


def logit_from_depth(depth: float) -> float:
    """The logit that `depth_from_logit` decodes to `depth` metres, 0 < depth < 1e6 - 1."""
    if not 0.0 < depth < MAX_DECODED_DEPTH:
        raise ValueError(f"depth must be between 0 and {MAX_DECODED_DEPTH:g} m, not {depth}")
    return -math.log(depth)
