import jax
import numpy as np

from diffdepth_jax.ops import random

KEY = jax.random.key(3)
SHAPE = (3, 2, 5, 4)


def test_numbers_equal_those_of_jax():
    np.testing.assert_array_equal(random.normal(KEY, SHAPE), jax.random.normal(KEY, SHAPE))
    want = jax.random.uniform(KEY, SHAPE, minval=-0.5, maxval=0.5)
    np.testing.assert_array_equal(random.uniform(KEY, SHAPE, 0.5), want)
