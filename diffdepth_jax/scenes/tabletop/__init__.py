"""Procedural table-tops and their conditions: bottles, vases, bowls, books and fruit in a room.

A layout only depends on the random generator, so a seed always gives the same scene. The table is
at the world's origin, and the camera south of it (y < 0), looking north. There is no ceiling: light
from above is the layout's ambient light.
"""

from diffdepth_jax.scenes.tabletop.conditions import CONDITIONS, categories
from diffdepth_jax.scenes.tabletop.layout import tabletop

__all__ = ["CONDITIONS", "categories", "tabletop"]
