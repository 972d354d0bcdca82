"""Procedural streets and their conditions.

A layout only depends on the random generator, so a seed always gives the same street.
"""

from diffdepth_jax.scenes.street.conditions import CONDITIONS
from diffdepth_jax.scenes.street.layout import street

__all__ = ["CONDITIONS", "street"]
