"""Procedural table-tops and their conditions: bottles, vases, bowls, books and fruit in a room.

A layout is drawn from a generator alone, so one seed gives one scene. The table stands about the
world's origin, the camera south of it (y < 0), looking north. The walls have no ceiling: the light
from above is the layout's ambient light.
"""

from diffdepth_jax.scenes.tabletop.conditions import CONDITIONS, categories
from diffdepth_jax.scenes.tabletop.layout import tabletop

__all__ = ["CONDITIONS", "categories", "tabletop"]
