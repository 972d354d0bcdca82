"""Medians and other order statistics of masked maps, without sorting.

XLA sorts slowly on the CPU: the median of a batch of small maps would take a tenth of the training
step. Here, the bits of an order statistic are found one at a time by counting smaller values. The
result is exact.
"""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

Values = Float[Array, "b h w 1"]
Mask = Bool[Array, "b h w 1"]

_AXES = (1, 2, 3)
_SIGN = jnp.iinfo(jnp.int32).min


def masked_median(values: Values, mask: Mask) -> Float[Array, "b 1 1 1"]:
    """The median of each image's masked values; for an even number, the mean of the middle two, as
    in NumPy. 0 if the mask is empty.

    The gradient goes to the middle value or values; equal values share it.
    """
    count = jnp.sum(mask, _AXES, keepdims=True)
    values = jnp.where(mask, values, 0.0)
    lower = _smallest(values, mask, jnp.maximum(count - 1, 0) // 2)
    following = jnp.min(jnp.where(mask & (values > lower), values, jnp.inf), _AXES, keepdims=True)
    reached = jnp.sum(mask & (values <= lower), _AXES, keepdims=True)
    upper = jax.lax.stop_gradient(jnp.where(reached > count // 2, lower, following))
    weighted = 0.5 * (_mean_of_equal(values, mask, lower) + _mean_of_equal(values, mask, upper))
    # The value is exact; the gradient is that of the weighted sum.
    exact = jnp.where(count > 0, 0.5 * (lower + upper), 0.0)
    return exact + (weighted - jax.lax.stop_gradient(weighted))


def weights_of_smallest(values: Values, mask: Mask, share: float) -> Values:
    """1 for the floor(share * M) smallest of each image's M masked values, 0 for the rest.

    Equal values at the limit share the remaining weight. Not differentiable.

    Args:
        values: to be ordered.
        mask: which values count.
        share: 0 to 1; read as a fraction with a denominator of at most 10,000.
    """
    values = jax.lax.stop_gradient(jnp.where(mask, values, 0.0))
    count = jnp.sum(mask, _AXES, keepdims=True)
    kept = _floor_of_share(count, share)
    found = _smallest(values, mask, jnp.maximum(kept - 1, 0))
    below, equal = mask & (values < found), mask & (values == found)
    left = (kept - jnp.sum(below, _AXES, keepdims=True)).astype(values.dtype)
    left /= jnp.maximum(jnp.sum(equal, _AXES, keepdims=True), 1)
    weights = jnp.where(below, 1.0, jnp.where(equal, left, 0.0))
    return jnp.where(kept > 0, weights, 0.0)


def _floor_of_share(count: Int[Array, "*b"], share: float) -> Int[Array, "*b"]:
    """Uses integers, as 0.8 * 35 in float32 may be below 28."""
    fraction = Fraction(share).limit_denominator(10_000)
    whole, rest = jnp.divmod(count, fraction.denominator)
    return whole * fraction.numerator + rest * fraction.numerator // fraction.denominator


def _mean_of_equal(
    values: Values, mask: Mask, value: Float[Array, "b 1 1 1"]
) -> Float[Array, "b 1 1 1"]:
    equal = mask & (values == value)
    total = jnp.sum(jnp.where(equal, values, 0.0), _AXES, keepdims=True)
    return total / jnp.maximum(jnp.sum(equal, _AXES, keepdims=True), 1)


@jax.jit  # otherwise, callers outside `jit` would compile the loop at every call
def _smallest(values: Values, mask: Mask, rank: Int[Array, "b 1 1 1"]) -> Float[Array, "b 1 1 1"]:
    """The value of this rank, counted from 0; not differentiated.

    Infinite if the mask has too few values.
    """
    keys = _ordered_bits(jnp.where(mask, jax.lax.stop_gradient(values), jnp.inf))
    # Reducing one axis is faster than reducing three.
    keys, ranks = keys.reshape(keys.shape[0], -1), rank.reshape(-1, 1)

    def refine(bit: Any, found: UInt[Array, "b 1"]) -> UInt[Array, "b 1"]:
        tried = found | (jnp.uint32(1) << jnp.uint32(31 - bit))  # bit is an int when not compiled
        return jnp.where(jnp.sum(keys < tried, 1, keepdims=True) <= ranks, tried, found)

    found = jax.lax.fori_loop(0, 32, refine, jnp.zeros_like(ranks, jnp.uint32))
    return _from_ordered_bits(found).reshape(rank.shape)


def _ordered_bits(values: Float[Array, "*b"]) -> UInt[Array, "*b"]:
    """Maps float32 numbers to integers with the same order."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jax.lax.bitcast_convert_type(jnp.where(bits < 0, ~bits, bits ^ _SIGN), jnp.uint32)


def _from_ordered_bits(keys: UInt[Array, "*b"]) -> Float[Array, "*b"]:
    bits = jax.lax.bitcast_convert_type(keys, jnp.int32)
    return jax.lax.bitcast_convert_type(jnp.where(bits < 0, bits ^ _SIGN, ~bits), jnp.float32)
