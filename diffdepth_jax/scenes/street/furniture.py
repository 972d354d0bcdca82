"""Pedestrians, and street furniture: lamps, signs, bins, fences.

An object is a list of meshes in its own axes: origin on the ground, x right, y forward, z up,
metres.
"""

import numpy as np

from diffdepth_jax.scenes import materials, shapes
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.street import surfaces
from diffdepth_jax.scenes.street.palette import Palette, one_of


def person(rng: np.random.Generator, palette: Palette) -> list[Mesh]:
    """A walking pedestrian."""
    height = rng.uniform(1.58, 1.9)
    scale = height / 1.75
    cloth = materials.plain("cloth", materials.muted(rng, 0.1, 0.85))
    trousers = materials.plain(
        "cloth", np.array([0.20, 0.23, 0.32]) * rng.uniform(0.4, 1.9) + rng.uniform(0, 0.1, size=3)
    )
    hair = materials.plain("hair", np.array([0.25, 0.17, 0.10]) * rng.uniform(0.3, 2.2))
    stride, swing = rng.uniform(0.05, 0.28), rng.uniform(0.05, 0.25)
    meshes = []
    for side in (-1, 1):
        foot = (side * 0.10, side * stride, 0.05)
        knee = (side * 0.10, side * stride * 0.5 + 0.04, 0.48)
        hip = (side * 0.09, 0, 0.92)
        meshes.append(shapes.tube(foot, knee, (0.055, 0.07), trousers))
        meshes.append(shapes.tube(knee, hip, (0.07, 0.095), trousers))
        meshes.append(
            shapes.ball((0.05, 0.13, 0.05), (foot[0], foot[1] + 0.05, 0.05), palette.rubber)
        )
        shoulder = (side * 0.20, 0, 1.40)
        elbow = (side * 0.26, -side * swing * 0.5, 1.13)
        hand = (side * 0.25, -side * swing + 0.08, 0.90)
        meshes.append(shapes.tube(shoulder, elbow, (0.06, 0.05), cloth))
        meshes.append(shapes.tube(elbow, hand, (0.05, 0.04), cloth))
        meshes.append(shapes.ball((0.045, 0.045, 0.06), hand, palette.skin))
    meshes.append(shapes.ball((0.22, 0.14, 0.34), (0, 0, 1.16), cloth))
    meshes.append(shapes.tube((0, 0, 1.40), (0, 0, 1.54), (0.06, 0.05), palette.skin))
    meshes.append(shapes.ball((0.085, 0.10, 0.125), (0, 0.01, 1.62), palette.skin))
    meshes.append(shapes.ball((0.092, 0.10, 0.10), (0, -0.015, 1.67), hair))
    return shapes.moved(meshes, (0, 0, 0), np.eye(3) * scale)


def lamp_post(rng: np.random.Generator, palette: Palette, height: float) -> list[Mesh]:
    """A street lamp whose arm reaches over the road, towards -y."""
    reach = rng.uniform(0.8, 1.8)
    return [
        shapes.tube((0, 0, 0), (0, 0, height), (0.09, 0.05), palette.metal),
        shapes.tube((0, 0, height - 0.1), (0, -reach, height + 0.15), (0.045, 0.04), palette.metal),
        shapes.box((0.22, 0.6, 0.10), (0, -reach - 0.2, height + 0.16), palette.metal),
        shapes.box((0.18, 0.5, 0.03), (0, -reach - 0.2, height + 0.095), palette.lamp),
    ]


def _plate(
    outline: np.ndarray, center: tuple[float, float, float], index: int, palette: Palette
) -> list[Mesh]:
    """A flat sign facing -y: image `index` on an `outline` `[k 2]` in metres (right, up)."""
    u0, v0, u1, v1 = surfaces.atlas_uv(index)
    extent = np.abs(outline).max()
    unit = outline / extent
    uvs = np.stack(
        [u0 + (unit[:, 0] + 1) / 2 * (u1 - u0), v0 + (unit[:, 1] + 1) / 2 * (v1 - v0)], axis=1
    )
    points = np.stack([outline[:, 0], np.zeros(len(outline)), outline[:, 1]], axis=1)
    fan = np.arange(1, len(outline) - 1)
    faces = np.stack([np.zeros_like(fan), fan, fan + 1], axis=1)
    front = Mesh(points + np.asarray(center), faces, uvs, palette.signs)
    back = Mesh(
        points + np.asarray(center) + np.array([0, 0.015, 0]),
        faces[:, ::-1],
        uvs,
        palette.light_metal,
    )
    return [front, back]


def sign(rng: np.random.Generator, palette: Palette) -> list[Mesh]:
    """A traffic sign on a post, facing -y."""
    row = rng.choice(4, p=[0.35, 0.25, 0.25, 0.15])
    height = rng.uniform(2.1, 2.7)
    size = rng.uniform(0.32, 0.42)
    column = int(rng.integers(4))
    if row == 0:
        turn = np.linspace(0, 2 * np.pi, 8 if column == 3 else 20, endpoint=False) + np.pi / 8
        outline = size * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    elif row == 1:
        outline = size * 1.15 * np.array([(-1.0, -0.75), (1.0, -0.75), (0.0, 1.0)])
        if column == 3:
            outline = -outline
    else:
        half = size if row == 2 else size * 1.6
        outline = half * np.array([(-1.0, -1), (1, -1), (1, 1), (-1, 1)])
    center = (0.0, -0.06, height + size)
    post = shapes.tube(
        (0, 0, 0), (0, 0, height + 1.8 * size), (0.035, 0.035), palette.light_metal, 8
    )
    return [post, *_plate(outline, center, 4 * row + column, palette)]


def traffic_light(rng: np.random.Generator, palette: Palette) -> list[Mesh]:
    """Three lights on a post, facing -y."""
    meshes = [
        shapes.tube((0, 0, 0), (0, 0, 3.3), (0.06, 0.06), palette.metal, 8),
        shapes.box((0.32, 0.26, 0.95), (0, -0.18, 2.85), palette.dark),
    ]
    lit = rng.integers(3)
    for index, colour in enumerate(((0.9, 0.1, 0.08), (0.95, 0.6, 0.1), (0.1, 0.75, 0.4))):
        lens = materials.plain("signal", np.asarray(colour) * (1.0 if index == lit else 0.3), 0.5)
        meshes.append(shapes.ball((0.11, 0.06, 0.11), (0, -0.32, 3.15 - 0.3 * index), lens))
    return meshes


def bin_or_box(rng: np.random.Generator, palette: Palette) -> list[Mesh]:
    """A litter bin, a utility cabinet or a bench."""
    kind = rng.integers(3)
    colour = materials.plain("metal", materials.muted(rng, 0.15, 0.6), gloss=0.2)
    if kind == 0:
        return [shapes.tube((0, 0, 0.1), (0, 0, 0.95), (0.22, 0.27), colour, 12)]
    if kind == 1:
        return [shapes.box((1.1, 0.4, 1.2), (0, 0, 0.6), colour)]
    meshes = [
        shapes.box((1.7, 0.1, 0.04), (0, -0.18 + 0.12 * i, 0.45), palette.wood) for i in range(4)
    ]
    meshes += [
        shapes.box((1.7, 0.04, 0.1), (0, 0.26, 0.6 + 0.14 * i), palette.wood) for i in range(2)
    ]
    meshes += [shapes.box((0.06, 0.45, 0.44), (x, 0.02, 0.22), palette.metal) for x in (-0.7, 0.7)]
    return meshes


def utility_pole(palette: Palette) -> list[Mesh]:
    """A wooden pole with a cross-arm."""
    return [
        shapes.tube((0, 0, 0), (0, 0, 8.5), (0.15, 0.10), palette.wood),
        shapes.box((0.12, 2.0, 0.14), (0, 0, 7.8), palette.wood),
        *[
            shapes.tube((0, y, 7.87), (0, y, 8.05), (0.05, 0.05), palette.light_metal, 6)
            for y in (-0.9, -0.45, 0.45, 0.9)
        ],
    ]


def fence(rng: np.random.Generator, palette: Palette, length: float, kind: str) -> list[Mesh]:
    """A barrier along x, centred: "pickets", "wall" or "rail" (a crash barrier)."""
    if kind == "wall":
        height = rng.uniform(0.6, 1.8)
        bricks = one_of(rng, palette.walls[("brick", "stone", "plaster")[rng.integers(3)]])
        return [
            shapes.box(
                (length, 0.25, height), (0, 0, height / 2), bricks, materials.WALL_TEXTURE_SIZE
            ),
            shapes.box((length, 0.33, 0.08), (0, 0, height + 0.04), palette.concrete),
        ]
    if kind == "rail":
        meshes = [
            shapes.box((0.1, 0.1, 0.75), (x, 0.1, 0.37), palette.light_metal)
            for x in np.arange(-length / 2 + 1, length / 2, 2.0)
        ]
        return [*meshes, shapes.box((length, 0.06, 0.32), (0, 0, 0.6), palette.light_metal)]
    boards = palette.wood if rng.random() < 0.5 else materials.plain("wood", (0.86, 0.85, 0.82))
    height = rng.uniform(0.8, 1.3)
    meshes = [
        shapes.box((0.11, 0.025, height), (x, 0, height / 2), boards)
        for x in np.arange(-length / 2, length / 2, 0.2)
    ]
    return [
        *meshes,
        shapes.box((length, 0.05, 0.08), (0, 0.03, height * 0.3), boards),
        shapes.box((length, 0.05, 0.08), (0, 0.03, height * 0.8), boards),
    ]
