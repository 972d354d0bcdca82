"""The materials shared by everything in a street."""

from dataclasses import dataclass

import numpy as np

from diffdepth_jax.scenes import materials
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.street import surfaces


@dataclass(frozen=True, eq=False)
class Palette:
    """Materials shared by all objects of a layout."""

    rubber: Material
    dark: Material
    metal: Material
    light_metal: Material
    car_glass: Material
    headlight: Material
    beam: Material
    taillight: Material
    lamp: Material
    plate: Material
    concrete: Material
    wood: Material
    bark: Material
    skin: Material
    signs: Material
    foliage: tuple[Material, ...]
    doors: Material
    windows: tuple[Material, ...]
    roofs: tuple[Material, ...]
    walls: dict[str, tuple[Material, ...]]


def palette(rng: np.random.Generator) -> Palette:
    """The shared materials, some of them drawn at random."""
    plain = materials.plain
    return Palette(
        rubber=plain("rubber", (0.10, 0.10, 0.11)),
        dark=plain("dark", (0.13, 0.13, 0.14), gloss=0.3),
        metal=plain("metal", np.array([0.42, 0.44, 0.45]) * rng.uniform(0.4, 1.2), gloss=0.4),
        light_metal=plain("metal", (0.72, 0.73, 0.74), gloss=0.6),
        car_glass=plain("glass", (0.07, 0.09, 0.10), gloss=1.0),
        headlight=plain("headlight", (0.90, 0.91, 0.92), gloss=1.0),
        beam=plain("beam", (0.90, 0.91, 0.92), gloss=1.0),
        taillight=plain("taillight", (0.68, 0.05, 0.05), gloss=0.9),
        lamp=plain("lamp", (0.85, 0.84, 0.78), gloss=0.5),
        plate=plain("plate", (0.92, 0.91, 0.84)),
        concrete=plain("concrete", np.array([0.60, 0.59, 0.56]) * rng.uniform(0.85, 1.1)),
        wood=plain("wood", np.array([0.50, 0.37, 0.25]) * rng.uniform(0.7, 1.3)),
        bark=surfaces.bark(rng),
        skin=plain("skin", np.array([0.80, 0.60, 0.47]) * rng.uniform(0.55, 1.1)),
        signs=surfaces.signs(),
        foliage=tuple(surfaces.foliage(rng) for _ in range(4)),
        doors=surfaces.doors(rng),
        windows=tuple(surfaces.windows(rng) for _ in range(5)),
        roofs=tuple(surfaces.roof(rng) for _ in range(3)),
        walls={
            style: tuple(materials.wall(rng, style) for _ in range(count))
            for style, count in (("brick", 3), ("plaster", 5), ("stone", 2), ("panel", 3))
        },
    )


def one_of(rng: np.random.Generator, choices: tuple[Material, ...]) -> Material:
    """A random choice of several materials."""
    return choices[rng.integers(len(choices))]
