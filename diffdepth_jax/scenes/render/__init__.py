"""Renders images and exact depth of a layout with Mitsuba 3.

The only package that imports mitsuba, from the optional extra `render`.
"""

from diffdepth_jax.scenes.render.hits import Hits, first_hits
from diffdepth_jax.scenes.render.picture import SAMPLES, render

__all__ = ["SAMPLES", "Hits", "first_hits", "render"]
