"""The room around a table: floor, walls, windows and lights."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffdepth_jax.scenes import materials, shapes
from diffdepth_jax.scenes.layouts import Camera, Panel, rgb
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.tabletop import surfaces
from diffdepth_jax.scenes.tabletop.furniture import STOCK, WINDOW, furnished
from diffdepth_jax.scenes.tabletop.table import flat


def room(
    rng: np.random.Generator, camera: Camera, reach: float
) -> tuple[list[Mesh], tuple[Panel, ...]]:
    """The floor and four furnished walls around table and camera, and the room's lights."""
    x, y, _ = camera.position
    walls = np.array(  # distances of the north, west, south and east walls from the table's centre
        [
            reach + rng.uniform(0.06, 2.0),
            max(reach, -x) + rng.uniform(0.3, 2.0),
            max(reach, -y) + rng.uniform(0.8, 2.5),
            max(reach, x) + rng.uniform(0.3, 2.0),
        ]
    )
    north, west, south, east = walls
    # High enough that no camera ray leaves the room over the walls.
    farthest = np.hypot(north - y, max(east - x, x + west)) + 0.5
    rays = camera.rays()
    steepest = (rays[..., 2] / np.linalg.norm(rays[..., :2], axis=-1)).max()
    top = max(2.6, camera.position[2] + steepest * farthest)
    plaster, floor = surfaces.wall(rng), surfaces.floor(rng)
    skirting = materials.plain("skirting", surfaces.colour(rng, surfaces.PAINTS), gloss=0.3)
    meshes = [
        flat(
            shapes.quad(
                [(-west, -south, 0), (east, -south, 0), (east, north, 0), (-west, north, 0)], floor
            ),
            rng.uniform(0.8, 1.6),
        )
    ]
    furniture = surfaces.wood(rng, "furniture", gloss=0.2)
    stock = [_kept_opaque(kind(rng)) for kind in STOCK]
    bright = rng.integers(4)  # which wall has the window
    panels: list[Panel] = []
    repeat = rng.uniform(0.8, 1.6)
    middle = np.array([(east - west) / 2, (north - south) / 2])
    for side, out in enumerate(((0, 1), (-1, 0), (0, -1), (1, 0))):
        turn = shapes.rotation(yaw=side * np.pi / 2)
        wide = (east + west, north + south)[side % 2]
        centre = np.where(np.array(out) != 0, np.array(out) * walls[side], middle)
        place = (*centre, 0.0)
        half = wide / 2
        pieces = [
            shapes.quad(
                [(-half, 0, 0), (half, 0, 0), (half, 0, top), (-half, 0, top)],
                plaster,
                (0, 0, wide / repeat, top / repeat),
            ),
            shapes.box((wide, 0.015, 0.09), (0, -0.0075, 0.045), skirting),
        ]
        room_to_table = walls[side] - reach
        window = None
        if (side == bright and side != 0) or (side == 0 and rng.random() < 0.12):
            window = float(rng.uniform(-0.4, 0.4) * max(half - 0.8, 0))
            pieces += window_frame(window)
        pieces += furnished(rng, half, room_to_table, furniture, stock, window)
        meshes += shapes.moved(pieces, place, turn)
        if window is not None:
            panels.append(_window(rng, window, place, turn))
    if rng.random() < 0.6 or not panels:
        panels.append(_ceiling_light(rng, min(top - 0.05, 2.6)))
    return meshes, tuple(panels)


def _kept_opaque(thing: Sequence[Mesh]) -> list[Mesh]:
    """The object as part of the room, which conditions do not change."""
    return [replace(mesh, material=replace(mesh.material, role="stock")) for mesh in thing]


def window_frame(at: float) -> list[Mesh]:
    width, height, sill = WINDOW
    white = materials.plain("frame", (0.90, 0.90, 0.88), gloss=0.4)
    middle = sill + height / 2
    bars = [
        ((0.07, 0.06, height + 0.14), (at - width / 2 - 0.035, -0.03, middle)),
        ((0.07, 0.06, height + 0.14), (at + width / 2 + 0.035, -0.03, middle)),
        ((0.05, 0.05, height), (at, -0.025, middle)),
        ((width, 0.06, 0.07), (at, -0.03, sill - 0.035)),
        ((width, 0.06, 0.07), (at, -0.03, sill + height + 0.035)),
        ((width, 0.04, 0.04), (at, -0.02, sill + 0.62 * height)),
        ((width + 0.3, 0.16, 0.03), (at, -0.08, sill - 0.085)),
    ]
    return [shapes.box(size, centre, white) for size, centre in bars]


def _window(
    rng: np.random.Generator, at: float, place: tuple[float, float, float], turn: np.ndarray
) -> Panel:
    width, height, sill = WINDOW
    left, right, low, high = at - width / 2, at + width / 2, sill, sill + height
    corners = np.array(
        [(left, -0.01, low), (right, -0.01, low), (right, -0.01, high), (left, -0.01, high)]
    )
    day = np.array([0.92, 1.0, 1.12]) if rng.random() < 0.7 else np.array([1.15, 1.0, 0.80])
    corners = corners @ turn.T + np.array(place)
    return Panel(tuple(map(tuple, corners.tolist())), rgb(day * rng.uniform(2.5, 6)))


def _ceiling_light(rng: np.random.Generator, height: float) -> Panel:
    x, y = rng.uniform(-0.8, 0.8), rng.uniform(-1.0, 0.5)
    half = rng.uniform(0.25, 0.6)
    corners = tuple(
        (x + half * a, y + half * b, height) for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1))
    )
    warm = np.array([1.15, 1.0, rng.uniform(0.65, 1.0)])
    return Panel(corners, rgb(warm * rng.uniform(0.5, 1.2) / half**2))
