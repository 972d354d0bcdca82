"""The kinds of scenes: functions that create them, and their conditions."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from diffdepth_jax.scenes import street, tabletop
from diffdepth_jax.scenes.layouts import Condition, Layout


class Kind(NamedTuple):
    """A kind of scene.

    Attributes:
        layout: `(rng, (height, width), focal length / width) -> Layout`.
        conditions: by name, `(layout, rng) -> layout` with the same geometry; "clear" first.
        focals: the cameras' focal lengths relative to the image width.
        samples: light paths per pixel that give good images.
        lidar: whether a lidar is simulated; otherwise "sparse" depth is dense.
        categories: `(layout, surface [h w]) -> uint8 [h w]`, the material class of each pixel, for
            kinds whose conditions change materials; `surface` is from `render.Hits`.
    """

    layout: Callable[[np.random.Generator, tuple[int, int], float], Layout]
    conditions: Mapping[str, Condition]
    focals: tuple[float, ...]
    samples: int
    lidar: bool
    categories: Callable[[Layout, Int[np.ndarray, "h w"]], UInt8[np.ndarray, "h w"]] | None = None


KINDS: Mapping[str, Kind] = {
    "street": Kind(
        street.street,
        street.CONDITIONS,
        focals=(0.52, 0.58, 0.65, 0.73),
        samples=4,
        lidar=True,
    ),
    "tabletop": Kind(
        tabletop.tabletop,
        tabletop.CONDITIONS,
        focals=(0.75, 0.85, 0.95, 1.1),
        samples=8,
        lidar=False,
        categories=tabletop.categories,
    ),
}
