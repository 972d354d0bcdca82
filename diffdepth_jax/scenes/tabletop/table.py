"""A table: round or square, bare or covered."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from diffdepth_jax.scenes import materials, shapes
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.tabletop import objects, surfaces
from diffdepth_jax.scenes.tabletop.arrangement import Corners


def flat(mesh: Mesh, repeat: float) -> Mesh:
    """The mesh with its texture projected from above, `repeat` metres per repeat."""
    return replace(mesh, uvs=mesh.vertices[:, :2] / repeat)


def table(
    rng: np.random.Generator, height: float
) -> tuple[list[Mesh], Callable[[Corners], bool], float]:
    """A table, a test for corners on it, and its extent from the centre."""
    top = surfaces.TABLE_TOPS[rng.integers(len(surfaces.TABLE_TOPS))](rng)
    frame = (
        surfaces.wood(rng, "table")
        if rng.random() < 0.7
        else materials.plain("table", np.array([1.0, 1, 1]) * rng.uniform(0.1, 0.9), gloss=0.3)
    )
    covered = rng.random() < 0.3
    thick, margin = rng.uniform(0.02, 0.045), 0.02
    repeat = rng.uniform(0.35, 0.7)
    legs = []
    if rng.random() < 0.3:
        radius = rng.uniform(0.42, 0.62)
        edge = [(radius - 0.004, 0), (radius, 0.004), (radius, thick - 0.004),
                (radius - 0.004, thick)]  # fmt: skip
        plate = shapes.lathe(objects.solid(np.array(edge)), top, sides=64, crease=0.5)
        plate = shapes.moved([flat(plate, repeat)], (0, 0, height - thick))[0]
        legs.append(shapes.tube((0, 0, 0), (0, 0, height - thick), (0.05, 0.05), frame, 16))
        legs.append(shapes.tube((0, 0, 0), (0, 0, 0.03), (0.28, 0.25), frame, 24))

        def within(corners: Corners) -> bool:
            return bool((np.linalg.norm(corners, axis=1) < radius - margin).all())

        return [plate, *legs], within, radius

    half = np.array([rng.uniform(0.5, 0.9), rng.uniform(0.34, 0.5)])
    hang = rng.uniform(0.12, 0.3) if covered else thick
    if covered:
        top = surfaces.cloth(rng, "table")
        repeat = rng.uniform(0.25, 0.6)
    plate = shapes.box((*(2 * half), hang), (0, 0, height - hang / 2), top, texture_size=repeat)
    leg = rng.uniform(0.035, 0.07)
    for x in (-1, 1):
        for y in (-1, 1):
            at = np.array([x, y]) * (half - leg)
            size = (leg, leg, height - hang)
            legs.append(shapes.box(size, (*at, (height - hang) / 2), frame, texture_size=0.3))

    def inside(corners: Corners) -> bool:
        return bool((np.abs(corners) < half - margin).all())

    return [plate, *legs], inside, float(np.linalg.norm(half))
