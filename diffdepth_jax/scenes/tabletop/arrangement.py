"""Arranges objects on a table without overlaps."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from diffdepth_jax.scenes import shapes
from diffdepth_jax.scenes.shapes import Mesh

Corners = Float[np.ndarray, "n 2"]  # corners of a convex polygon on the table, in order

GAP = 0.008  # minimum distance between objects on the table, metres


def footprint(meshes: Sequence[Mesh]) -> Corners:
    """`[4 2]` corners of an object's bounding rectangle on the table, along its own axes."""
    points = np.concatenate([mesh.vertices[:, :2] for mesh in meshes])
    low, high = points.min(axis=0), points.max(axis=0)
    return np.array([low, (high[0], low[1]), high, (low[0], high[1])])


def apart(first: Corners, second: Corners, gap: float) -> bool:
    """Whether two convex polygons are at least `gap` apart along the normal of some edge."""
    for one, other in ((first, second), (second, first)):
        edges = np.roll(one, -1, axis=0) - one
        outwards = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
        outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
        beyond = (outwards @ other.T).min(axis=1) - np.einsum("ij,ij->i", outwards, one)
        if beyond.max() >= gap:
            return True
    return False


def arrange(
    rng: np.random.Generator,
    things: Sequence[list[Mesh]],
    inside: Callable[[Corners], bool],
    spread: float,
) -> list[list[Mesh]]:
    """Moves and rotates objects so that none overlap or extend beyond the table.

    Large objects are placed first; taller ones tend to be farther back.

    Args:
        rng: determines positions.
        things: objects, each standing on z = 0.
        inside: returns whether corners are on the table.
        spread: standard deviation of positions from the table's centre, metres.

    Returns:
        The objects that could be placed within 80 attempts, in order of placement.
    """
    prints = [footprint(thing) for thing in things]
    tall = [max(mesh.vertices[:, 2].max() for mesh in thing) for thing in things]
    order = sorted(range(len(things)), key=lambda i: -np.ptp(prints[i], axis=0).prod())
    taken: list[Corners] = []
    placed = []
    for i in order:
        for _ in range(80):
            place = rng.normal(0, spread, size=2) * (1.5, 1.0) + (0.0, 0.8 * tall[i] - 0.12)
            turn = shapes.rotation(yaw=rng.uniform(-np.pi, np.pi))
            corners = prints[i] @ turn[:2, :2].T + place
            if inside(corners) and all(apart(corners, other, GAP) for other in taken):
                taken.append(corners)
                placed.append(shapes.moved(things[i], (*place, 0.0), turn))
                break
    return placed
