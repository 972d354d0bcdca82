"""Furniture at the walls of a room."""

from collections.abc import Sequence

import numpy as np

from diffdepth_jax.scenes import materials, shapes
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.tabletop import objects, surfaces
from diffdepth_jax.scenes.tabletop.arrangement import footprint

STOCK = (
    objects.books_standing, objects.books_standing, objects.books_standing, objects.books_lying,
    objects.packet, objects.packet, objects.vase, objects.bottle,
)  # fmt: skip

WINDOW = (1.7, 1.4, 0.9)  # width, height, and height of the sill


def furnished(
    rng: np.random.Generator,
    half: float,
    depth: float,
    wood: Material,
    stock: Sequence[list[Mesh]],
    window: float | None,
) -> list[Mesh]:
    """Furniture at a wall: pictures, shelves, cabinets.

    Args:
        rng: source of randomness.
        half: half the wall's length, metres.
        depth: free space in front of the wall, metres.
        wood: material of the furniture.
        stock: objects to put on shelves and cabinets, used repeatedly.
        window: position of a window's centre, None for no window.
    """
    meshes: list[Mesh] = []
    at = -half + rng.uniform(0.1, 0.5)
    while at + 0.5 < half:
        width = rng.uniform(0.35, 1.0)
        width = min(width, half - at - 0.05)
        middle = at + width / 2
        at += width + rng.uniform(0.08, 0.5)
        clear = window is None or abs(middle - window) > width / 2 + WINDOW[0] / 2 + 0.2
        low = 0.0
        if depth > 0.6 and rng.random() < 0.5:
            low = rng.uniform(0.7, 0.95) if window is None or clear else 0.7
            meshes += _cabinet(rng, middle, width, low, wood, stock)
        if not clear:
            continue
        kind = rng.random()
        if kind < 0.5:
            meshes += _hung(rng, middle, width, max(low + 0.35, rng.uniform(0.95, 1.25)))
        elif kind < 0.85 and depth > 0.3:
            meshes += _shelf(rng, middle, width, max(low + 0.4, rng.uniform(1.0, 1.4)), wood, stock)
    return meshes


def _hung(rng: np.random.Generator, x: float, width: float, low: float) -> list[Mesh]:
    """A framed picture."""
    width *= rng.uniform(0.6, 1.0)
    height = width * rng.uniform(0.6, 1.3)
    middle = low + height / 2
    frame = materials.plain("frame", surfaces.colour(rng), gloss=0.4)
    border = rng.uniform(0.015, 0.05)
    inner = (width / 2 - border, height / 2 - border)
    corners = [(x + a * inner[0], -0.026, middle + b * inner[1])
               for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]  # fmt: skip
    return [
        shapes.box((width, 0.025, height), (x, -0.0125, middle), frame),
        shapes.quad(corners, surfaces.picture(rng)),
    ]


def _shelf(
    rng: np.random.Generator,
    x: float,
    width: float,
    low: float,
    wood: Material,
    stock: Sequence[list[Mesh]],
) -> list[Mesh]:
    """One to three boards with books and vessels on them."""
    meshes = []
    for level in range(int(rng.integers(1, 4))):
        height = low + 0.36 * level
        board = shapes.box((width, 0.22, 0.02), (x, -0.11, height - 0.01), wood, texture_size=0.5)
        meshes.append(board)
        meshes += _on_board(rng, x, width, height, stock)
    return meshes


def _on_board(
    rng: np.random.Generator, x: float, width: float, height: float, stock: Sequence[list[Mesh]]
) -> list[Mesh]:
    """Objects side by side on a 22 cm deep board."""
    meshes: list[Mesh] = []
    left = x - width / 2 + 0.02
    while True:
        thing = stock[int(rng.integers(len(stock)))]
        corners = footprint(thing)
        wide = np.ptp(corners[:, 0])
        if left + wide > x + width / 2 - 0.02:
            return meshes
        place = (left + wide / 2 - corners[:, 0].mean(), -0.11 - corners[:, 1].mean(), height)
        meshes += shapes.moved(thing, place)
        left += wide + rng.uniform(0.015, 0.15)


def _cabinet(
    rng: np.random.Generator,
    x: float,
    width: float,
    height: float,
    wood: Material,
    stock: Sequence[list[Mesh]],
) -> list[Mesh]:
    """A sideboard with drawers, and something on it."""
    depth = 0.36
    meshes = [
        shapes.box((width, depth, height), (x, -depth / 2, height / 2), wood, texture_size=0.6)
    ]
    knob = materials.plain("knob", (0.75, 0.72, 0.60), gloss=0.7)
    front = surfaces.wood(rng, "furniture", gloss=0.2) if rng.random() < 0.3 else wood
    rows = int(rng.integers(1, 5))
    for row in range(rows):
        tall = (height - 0.06) / rows
        middle = 0.04 + tall * (row + 0.5)
        panel = (width - 0.04, 0.012, tall - 0.02)
        meshes.append(shapes.box(panel, (x, -depth - 0.006, middle), front, texture_size=0.45))
        meshes.append(shapes.ball((0.014,) * 3, (x, -depth - 0.024, middle), knob))
    if rng.random() < 0.7:
        meshes += shapes.moved(_on_board(rng, x, width, height, stock), (0, -0.06, 0))
    return meshes
