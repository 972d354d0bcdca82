"""Procedural streets and their conditions.

A layout is drawn from a generator alone, so one seed gives one street.
"""

from diffdepth_jax.scenes.street.conditions import CONDITIONS
from diffdepth_jax.scenes.street.layout import street

__all__ = ["CONDITIONS", "street"]
