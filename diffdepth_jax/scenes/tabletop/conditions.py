"""Conditions of a table-top: its ware made of glass or polished metal."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt8

from diffdepth_jax.scenes import materials
from diffdepth_jax.scenes.layouts import Condition, Layout
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.tabletop import objects, surfaces

GLASS_TINTS = (
    (0.98, 0.99, 0.985),
    (0.98, 0.99, 0.985),
    (0.98, 0.99, 0.985),
    (0.74, 0.92, 0.78),
    (0.94, 0.80, 0.62),
    (0.76, 0.86, 0.96),
    (0.95, 0.78, 0.84),
    (0.70, 0.90, 0.90),
)

METALS = (
    (0.97, 0.96, 0.94),
    (0.97, 0.96, 0.94),
    (0.82, 0.83, 0.85),
    (0.98, 0.86, 0.60),
    (0.96, 0.76, 0.66),
)


def _glass(rng: np.random.Generator) -> Material:
    """Solid walls that refract light, or skins too thin to do so, like a bubble's."""
    tint = surfaces.colour(rng, GLASS_TINTS, wander=0.04)
    kind: Literal["glass", "thin_glass"] = "glass" if rng.random() < 0.75 else "thin_glass"
    return replace(materials.plain(objects.WARE, tint), kind=kind)


def _mirror(rng: np.random.Generator) -> Material:
    """Polished silver, steel, gold or copper."""
    tint = surfaces.colour(rng, METALS, wander=0.02)
    return replace(materials.plain(objects.WARE, tint), kind="mirror")


def clear(layout: Layout, rng: np.random.Generator) -> Layout:
    """Everything opaque: the layout as it is."""
    del rng
    return layout


def transparent(layout: Layout, rng: np.random.Generator) -> Layout:
    """Some or all of the ware made of glass, clear or coloured."""
    return _remade(layout, rng, _glass)


def mirror(layout: Layout, rng: np.random.Generator) -> Layout:
    """Some or all of the ware made of polished metal."""
    return _remade(layout, rng, _mirror)


CONDITIONS: Mapping[str, Condition] = {
    "clear": clear,
    "transparent": transparent,
    "mirror": mirror,
}


def _remade(
    layout: Layout,
    rng: np.random.Generator,
    material: Callable[[np.random.Generator], Material],
) -> Layout:
    """The layout with a random half or all of the ware in a different material."""
    ware = [i for i, mesh in enumerate(layout.meshes) if mesh.material.role == objects.WARE]
    everything = rng.random() < 0.5
    chosen = set(ware if everything else rng.permutation(ware)[: (len(ware) + 1) // 2].tolist())
    meshes = tuple(
        replace(mesh, material=material(rng)) if i in chosen else mesh
        for i, mesh in enumerate(layout.meshes)
    )
    return replace(layout, meshes=meshes)


def categories(layout: Layout, surface: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Booster's material categories (Zama Ramirez et al., 2022); higher is harder.

    Its evaluation counts 2 and 3 as transparent or mirror ("ToM"), 0 and 1 as other. As in its
    published sample mask, silver is 2 and glass is 3; 1 is a glossy coat, 0 everything else.

    Args:
        layout: the scene in one condition.
        surface: `[h w]` index of the mesh that each pixel shows; -1, and values beyond the meshes,
            for none.

    Returns:
        uint8 `[h w]`.
    """
    kinds = {"glass": 3, "thin_glass": 3, "mirror": 2}
    values = [
        kinds.get(mesh.material.kind, int(mesh.material.gloss >= 0.5)) for mesh in layout.meshes
    ]
    known = (surface >= 0) & (surface < len(values))
    return np.where(known, np.array(values, np.uint8)[np.where(known, surface, 0)], np.uint8(0))
