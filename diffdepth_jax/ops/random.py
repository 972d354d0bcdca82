"""Random arrays of any shape, drawn as one long vector.

The numbers equal those of `jax.random` for the same key and shape. But XLA:CPU takes five seconds
to compile a four-dimensional draw and a third of a second for a vector, and initialising a network
takes a hundred draws.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard normal numbers, float32."""
    return jax.random.normal(key, (math.prod(shape),), jnp.float32).reshape(shape)


def uniform(key: Key[Array, ""], shape: tuple[int, ...], bound: float) -> Float[Array, "..."]:
    """Uniform numbers in [-bound, bound), float32."""
    row = jax.random.uniform(key, (math.prod(shape),), jnp.float32, -bound, bound)
    return row.reshape(shape)
