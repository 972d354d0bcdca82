"""Trees, hedges and bushes.

An object is a list of meshes in its own axes: origin on the ground, x right, y forward, z up,
metres.
"""

import numpy as np

from diffdepth_jax.scenes import shapes
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.street.palette import Palette, one_of


def tree(rng: np.random.Generator, palette: Palette, size: float = 1.0) -> list[Mesh]:
    """A deciduous tree, 5 to 11 m high (times `size`)."""
    height = rng.uniform(5.0, 11.0) * size
    clear = height * rng.uniform(0.22, 0.36)  # trunk below the crown
    spread = height * rng.uniform(0.2, 0.36)
    leaves = one_of(rng, palette.foliage)
    lean = rng.normal(0, 0.03, size=2) * height
    fork = np.array([lean[0], lean[1], clear * 1.1])
    radius = 0.022 * height + 0.03
    meshes = [shapes.tube((0, 0, -0.2), fork, (radius, radius * 0.72), palette.bark)]
    middle = np.array([lean[0], lean[1], (clear + height) / 2])
    radii = np.array([spread, spread, (height - clear) / 2])
    clumps = int(rng.integers(16, 26))
    for index in range(clumps):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        center = middle + direction * radii * rng.uniform(0.35, 0.85)
        if index < 5:
            meshes.append(shapes.tube(fork, center, (radius * 0.5, radius * 0.12), palette.bark, 6))
        clump = spread * rng.uniform(0.26, 0.5)
        meshes.append(
            shapes.ball(
                (clump, clump, clump * 0.8), center, leaves, rng=rng, bumps=0.28, steps=(8, 11)
            )
        )
    return meshes


def conifer(rng: np.random.Generator, palette: Palette, size: float = 1.0) -> list[Mesh]:
    """A fir in ragged tiers."""
    height = rng.uniform(5.0, 11.0) * size
    spread = height * rng.uniform(0.17, 0.26)
    leaves = one_of(rng, palette.foliage)
    meshes = [shapes.tube((0, 0, -0.2), (0, 0, height * 0.5), (0.16, 0.08), palette.bark)]
    tiers, points = 7, 15
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    for tier in range(tiers):
        low = height * (0.1 + 0.8 * tier / tiers)
        high = min(low + height * 0.27, height)
        radius = spread * (1 - tier / tiers) + 0.08
        ragged = radius * (1 + 0.16 * rng.normal(size=points).clip(-2, 2))
        rim = np.stack(
            [ragged * np.cos(angle), ragged * np.sin(angle), low + 0.06 * rng.normal(size=points)],
            1,
        )
        tip = np.stack([0.02 * np.cos(angle), 0.02 * np.sin(angle), np.full(points, high)], 1)
        meshes.append(shapes.loft(np.stack([rim, tip]), leaves))
    return meshes


def hedge(rng: np.random.Generator, palette: Palette, length: float, height: float) -> list[Mesh]:
    """A clipped hedge along x, centred."""
    leaves = one_of(rng, palette.foliage)
    count = max(int(length / 0.7), 2)
    return [
        shapes.ball(
            (0.62, 0.38, height * 0.55),
            (-length / 2 + length * (i + 0.5) / count, 0, height * 0.48),
            leaves,
            rng=rng,
            bumps=0.12,
            steps=(7, 9),
        )
        for i in range(count)
    ]


def bush(rng: np.random.Generator, palette: Palette) -> list[Mesh]:
    """A round bush made of a few clumps."""
    leaves = one_of(rng, palette.foliage)
    size = rng.uniform(0.4, 1.1)
    return [
        shapes.ball(
            (size * 0.7, size * 0.7, size * 0.6),
            (*(rng.normal(0, 0.4 * size, size=2)), size * rng.uniform(0.35, 0.7)),
            leaves,
            rng=rng,
            bumps=0.25,
            steps=(7, 10),
        )
        for _ in range(4)
    ]
