"""Things that stand in a street, built from meshes.

Every function returns meshes in the thing's own axes: origin on the ground, x right, y forward
(a building's front faces -y, towards the street), z up, metres.
"""

from dataclasses import dataclass

import numpy as np

from diffdepth_jax.scenes import materials, shapes
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh


@dataclass(frozen=True, eq=False)
class Palette:
    """Materials that all things of one layout share."""

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
        bark=materials.bark(rng),
        skin=plain("skin", np.array([0.80, 0.60, 0.47]) * rng.uniform(0.55, 1.1)),
        signs=materials.signs(),
        foliage=tuple(materials.foliage(rng) for _ in range(4)),
        doors=materials.doors(rng),
        windows=tuple(materials.windows(rng) for _ in range(5)),
        roofs=tuple(materials.roof(rng) for _ in range(3)),
        walls={
            style: tuple(materials.wall(rng, style) for _ in range(count))
            for style, count in (("brick", 3), ("plaster", 5), ("stone", 2), ("panel", 3))
        },
    )


def _one_of(rng: np.random.Generator, choices: tuple[Material, ...]) -> Material:
    return choices[rng.integers(len(choices))]


# --- vehicles -----------------------------------------------------------------------------------

PAINTS = (
    (0.90, 0.90, 0.91),
    (0.90, 0.90, 0.91),
    (0.66, 0.68, 0.70),
    (0.66, 0.68, 0.70),
    (0.33, 0.34, 0.36),
    (0.10, 0.10, 0.12),
    (0.10, 0.10, 0.12),
    (0.58, 0.07, 0.09),
    (0.75, 0.12, 0.08),
    (0.10, 0.20, 0.45),
    (0.28, 0.45, 0.65),
    (0.12, 0.30, 0.20),
    (0.62, 0.55, 0.42),
    (0.86, 0.62, 0.10),
)


def _paint(rng: np.random.Generator) -> Material:
    colour = np.asarray(PAINTS[rng.integers(len(PAINTS))]) * rng.uniform(0.85, 1.1)
    return materials.plain("paint", np.clip(colour, 0, 0.95), gloss=0.8)


def _rounded_ring(half_width: float, bottom: float, top: float, y: float) -> np.ndarray:
    """`[16 3]` rounded cross-section of a car body at `y`, for lofting forward."""
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False) + np.pi / 16
    power = 0.38  # a superellipse: sides nearly flat, edges round
    x = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power * half_width
    z = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
    z = bottom + (z + 1) / 2 * (top - bottom)
    # Tumblehome: the sides lean in above the waist.
    x = x * (1 - 0.06 * np.clip((z - bottom) / (top - bottom) - 0.5, 0, 1) * 2)
    return np.stack([x, np.full(16, y), z], axis=1)


def _wheels(palette: Palette, width: float, axles: tuple[float, ...], radius: float) -> list[Mesh]:
    meshes = []
    for y in axles:
        for side in (-1, 1):
            inner, outer = side * (width / 2 - 0.22), side * (width / 2 + 0.005)
            meshes.append(
                shapes.tube(
                    (inner, y, radius), (outer, y, radius), (radius, radius), palette.rubber, 16
                )
            )
            rim = radius * 0.62
            meshes.append(
                shapes.tube(
                    (outer - side * 0.02, y, radius),
                    (outer + side * 0.01, y, radius),
                    (rim, rim * 0.9),
                    palette.light_metal,
                    12,
                )
            )
    return meshes


def _pane(corners: np.ndarray, material: Material, shrink: float, offset: float) -> Mesh:
    """A pane in front of a four-cornered face: its corners drawn together, shifted outwards."""
    middle = corners.mean(axis=0)
    normal = np.cross(corners[1] - corners[0], corners[3] - corners[0])
    normal /= np.linalg.norm(normal)
    return shapes.quad(middle + (corners - middle) * shrink + normal * offset, material)


def _lights(palette: Palette, length: float, width: float, front: float, rear: float) -> list[Mesh]:
    """Lamps, plates and a grille at both ends; `front`, `rear`: their heights."""
    meshes = []
    for side in (-1, 1):
        x = side * width * 0.36
        meshes.append(
            shapes.ball((0.17, 0.10, 0.10), (x, length / 2 - 0.06, front), palette.headlight)
        )
        left, right, low, high = x - 0.12, x + 0.12, front - 0.06, front + 0.06
        y = length / 2 + 0.045  # the glass of the lamp; at night it shines
        meshes.append(
            shapes.quad([(right, y, low), (left, y, low), (left, y, high), (right, y, high)],
                        palette.beam)
        )  # fmt: skip
        meshes.append(
            shapes.box((0.26, 0.10, 0.16), (x, -length / 2 + 0.03, rear), palette.taillight)
        )
    meshes.append(
        shapes.box((0.52, 0.03, 0.12), (0, -length / 2 - 0.01, rear - 0.22), palette.plate)
    )
    meshes.append(
        shapes.box((0.52, 0.03, 0.12), (0, length / 2 + 0.01, front - 0.22), palette.plate)
    )
    meshes.append(
        shapes.box((width * 0.5, 0.04, 0.12), (0, length / 2 - 0.01, front), palette.dark)
    )
    for end in (-1, 1):
        meshes.append(
            shapes.box(
                (width * 0.9, 0.14, 0.16), (0, end * (length / 2 - 0.07), 0.36), palette.dark
            )
        )
    return meshes


def car(rng: np.random.Generator, palette: Palette) -> list[Mesh]:
    """A hatchback, saloon, estate or small off-roader."""
    kind = ("hatchback", "saloon", "estate", "offroad")[rng.choice(4, p=[0.4, 0.25, 0.2, 0.15])]
    length = {"hatchback": 3.9, "saloon": 4.6, "estate": 4.6, "offroad": 4.4}[kind]
    height = {"hatchback": 1.47, "saloon": 1.42, "estate": 1.48, "offroad": 1.72}[kind]
    length, height = length * rng.uniform(0.94, 1.06), height * rng.uniform(0.97, 1.04)
    width = rng.uniform(1.68, 1.86)
    paint = _paint(rng)
    bottom, belt = (0.34, 0.98) if kind == "offroad" else (0.24, 0.86)
    boot = {"hatchback": 0.93, "saloon": 1.03, "estate": 1.0, "offroad": 1.0}[kind]
    stations = [  # (along, half width, bottom, top) relative to length, width, and the belt line
        (-0.50, 0.80, 0.14, 0.62 * boot),
        (-0.485, 0.92, 0.05, 0.93 * boot),
        (-0.42, 0.98, 0.0, boot),
        (-0.20, 1.0, 0.0, 1.02),
        (0.20, 1.0, 0.0, 1.02),
        (0.30, 0.99, 0.0, 0.97),
        (0.44, 0.95, 0.02, 0.86),
        (0.485, 0.88, 0.06, 0.76),
        (0.50, 0.74, 0.14, 0.60),
    ]
    rings = np.stack(
        [
            _rounded_ring(w * width / 2, bottom + b * 0.6, top * belt, y * length)
            for y, w, b, top in stations
        ]
    )
    meshes = [shapes.loft(rings, paint, smooth=True)]
    # Cabin: (rear, front) along the length, at the belt and at the roof.
    low = {"hatchback": (-0.47, 0.24), "saloon": (-0.36, 0.24)}.get(kind, (-0.485, 0.24))
    high = {"hatchback": (-0.38, 0.06), "saloon": (-0.22, 0.07)}.get(kind, (-0.44, 0.07))
    floor, ceiling = belt * 0.98, height
    half_low, half_high = width * 0.455, width * 0.37

    def rectangle(ends: tuple[float, float], half: float, z: float) -> np.ndarray:
        rear, front = ends[0] * length, ends[1] * length
        return np.array([(half, rear, z), (half, front, z), (-half, front, z), (-half, rear, z)])

    base, top = rectangle(low, half_low, floor), rectangle(high, half_high, ceiling - 0.06)
    crown = rectangle((high[0] + 0.02, high[1] - 0.02), half_high * 0.88, ceiling)
    meshes.append(shapes.loft(np.stack([base, top, crown]), paint))
    for index in range(4):  # right, front, left, rear
        after = (index + 1) % 4
        face = np.stack([base[index], base[after], top[after], top[index]])
        if index % 2:
            meshes.append(_pane(face, palette.car_glass, 0.88, 0.012))
        else:  # a pillar parts the side windows
            for i, j in ((0.0, 0.52), (0.52, 1.0)):
                part = np.stack(
                    [
                        face[0] + i * (face[1] - face[0]),
                        face[0] + j * (face[1] - face[0]),
                        face[3] + j * (face[2] - face[3]),
                        face[3] + i * (face[2] - face[3]),
                    ]
                )
                meshes.append(_pane(part, palette.car_glass, 0.86, 0.012))
    radius = 0.37 if kind == "offroad" else 0.31
    meshes += _wheels(palette, width, (-0.31 * length, 0.31 * length), radius)
    for y in (-0.31 * length, 0.31 * length):  # dark wheel houses
        for side in (-1, 1):
            x = side * width / 2
            meshes.append(
                shapes.tube(
                    (x - side * 0.06, y, radius),
                    (x - side * 0.012, y, radius),
                    (radius * 1.18, radius * 1.18),
                    palette.dark,
                    16,
                )
            )
    for side in (-1, 1):  # mirrors
        meshes.append(
            shapes.ball(
                (0.11, 0.07, 0.08), (side * (width / 2 + 0.06), 0.17 * length, belt + 0.06), paint
            )
        )
    meshes += _lights(palette, length, width, belt * 0.72, belt * 0.82)
    return meshes


def van(rng: np.random.Generator, palette: Palette, *, wide: bool = True) -> list[Mesh]:
    """A delivery van or, if `wide`, perhaps a lorry or bus: one tall body with a windscreen."""
    kind = ("van", "lorry", "bus")[rng.choice(3, p=[0.6, 0.25, 0.15])]
    if not wide:
        kind = "van"
    length, width, height = {
        "van": (5.3, 1.95, 2.2),
        "lorry": (7.4, 2.4, 3.3),
        "bus": (11.0, 2.5, 3.0),
    }[kind]
    length, height = length * rng.uniform(0.92, 1.06), height * rng.uniform(0.93, 1.05)
    paint = _paint(rng)
    bottom = 0.38
    nose = {"van": 1.0, "lorry": 1.9, "bus": 0.15}[kind]  # length of the front part
    cab = 0.86 if kind == "lorry" else 1.0
    front = length / 2
    meshes = []
    body_rings = [
        (-front, 0.96, height - 0.06),
        (-front + 0.08, 1.0, height),
        (front - nose - 0.05, 1.0, height),
    ]
    if kind == "van":
        body_rings += [
            (front - 0.75, 0.97, height * 0.64),
            (front - 0.1, 0.93, height * 0.52),
            (front, 0.84, height * 0.42),
        ]
        screen = ((front - 0.98, height * 0.93), (front - 0.72, height * 0.63))
    elif kind == "bus":
        body_rings += [(front - 0.08, 0.99, height), (front, 0.94, height - 0.12)]
        screen = ((front + 0.012, height - 0.35), (front + 0.012, height * 0.42))
    else:
        screen = ((front - 0.05, height * cab * 0.88), (front + 0.012, height * 0.50))
    rings = np.stack([_rounded_ring(w * width / 2, bottom, top, y) for y, w, top in body_rings])
    meshes.append(shapes.loft(rings, paint, smooth=True))
    if kind == "lorry":
        colour = _paint(rng)
        rings = np.stack(
            [
                _rounded_ring(0.47 * width, bottom, top, y)
                for y, top in (
                    (front - nose + 0.1, height * cab),
                    (front - 0.35, height * cab),
                    (front - 0.08, height * cab * 0.9),
                    (front, height * 0.5),
                )
            ]
        )
        meshes.append(shapes.loft(rings, colour, smooth=True))
    half = width * 0.43
    (y_top, z_top), (y_low, z_low) = screen
    meshes.append(
        shapes.quad(
            [(half, y_low + 0.03, z_low), (-half, y_low + 0.03, z_low),
             (-half * 0.95, y_top + 0.03, z_top), (half * 0.95, y_top + 0.03, z_top)],
            palette.car_glass,
        )
    )  # fmt: skip
    side_x = width / 2 + 0.012
    if kind == "bus":
        panes = [
            (-front + 0.5 + 1.6 * i, -front + 2.0 + 1.6 * i) for i in range(int(length / 1.6) - 1)
        ]
        low, high = height * 0.45, height * 0.84
    else:
        panes = (
            [(front - nose - 0.05, front - nose + 0.75)]
            if kind == "lorry"
            else [(front - 2.0, front - 1.05)]
        )
        low, high = height * 0.52, height * 0.80
    for rear, ahead in panes:
        for side in (-1, 1):
            ends = (rear, ahead) if side > 0 else (ahead, rear)
            x = side * side_x
            meshes.append(
                shapes.quad(
                    [(x, ends[0], low), (x, ends[1], low), (x, ends[1], high), (x, ends[0], high)],
                    palette.car_glass,
                )
            )
    if kind != "lorry":  # rear window
        y = -front - 0.012
        meshes.append(
            shapes.quad(
                [(-half, y, height * 0.55), (half, y, height * 0.55),
                 (half, y, height * 0.85), (-half, y, height * 0.85)],
                palette.car_glass,
            )
        )  # fmt: skip
    radius = 0.34 if kind == "van" else 0.48
    meshes += _wheels(palette, width, (-0.3 * length, 0.34 * length), radius)
    meshes += _lights(palette, length, width, 0.75, 0.95)
    return meshes


# --- people and street furniture ----------------------------------------------------------------


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
    """A flat sign facing -y: picture `index` on an `outline` `[k 2]` in metres (right, up)."""
    u0, v0, u1, v1 = materials.atlas_uv(index)
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
    """A litter bin, a switch cabinet or a bench."""
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


# --- plants -------------------------------------------------------------------------------------


def tree(rng: np.random.Generator, palette: Palette, size: float = 1.0) -> list[Mesh]:
    """A broad-leaved tree 5 to 11 m high (times `size`)."""
    height = rng.uniform(5.0, 11.0) * size
    clear = height * rng.uniform(0.22, 0.36)  # trunk below the crown
    spread = height * rng.uniform(0.2, 0.36)
    leaves = _one_of(rng, palette.foliage)
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
    leaves = _one_of(rng, palette.foliage)
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
    leaves = _one_of(rng, palette.foliage)
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
    """A round bush of a few clumps."""
    leaves = _one_of(rng, palette.foliage)
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


def fence(rng: np.random.Generator, palette: Palette, length: float, kind: str) -> list[Mesh]:
    """A barrier along x, centred: "pickets", "wall" or "rail" (a crash barrier)."""
    if kind == "wall":
        height = rng.uniform(0.6, 1.8)
        bricks = _one_of(rng, palette.walls[("brick", "stone", "plaster")[rng.integers(3)]])
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


# --- buildings ----------------------------------------------------------------------------------


def _gable_roof(
    width: float,
    depth: float,
    base: float,
    rise: float,
    tiles: Material,
    gable: Material,
    across: bool,
) -> list[Mesh]:
    """A pitched roof over x in [-w/2, w/2], y in [0, d]; `across`: the ridge runs along y."""
    eave = 0.45
    half, near, far = width / 2, 0.0, depth
    run = half if across else depth / 2
    slope = rise / run
    drop, top = base - eave * slope, base + rise
    length = (depth if across else width) / 2
    size = 2.0  # metres per repeat of the tiles
    v = np.hypot(run + eave, rise + eave * slope) / size
    if across:
        left = [(-half - eave, far + eave, drop), (-half - eave, near - eave, drop),
                (0, near - eave, top), (0, far + eave, top)]  # fmt: skip
        right = [(half + eave, near - eave, drop), (half + eave, far + eave, drop),
                 (0, far + eave, top), (0, near - eave, top)]  # fmt: skip
        gables = [
            [(-half, near, base), (half, near, base), (0, near, top)],
            [(half, far, base), (-half, far, base), (0, far, top)],
        ]
    else:
        middle = depth / 2
        left = [(-half - eave, near - eave, drop), (half + eave, near - eave, drop),
                (half + eave, middle, top), (-half - eave, middle, top)]  # fmt: skip
        right = [(half + eave, far + eave, drop), (-half - eave, far + eave, drop),
                 (-half - eave, middle, top), (half + eave, middle, top)]  # fmt: skip
        gables = [
            [(half, near, base), (half, far, base), (half, middle, top)],
            [(-half, far, base), (-half, near, base), (-half, middle, top)],
        ]
    u = (2 * length + 2 * eave) / size
    meshes = [shapes.quad(corners, tiles, (0, 0, u, v)) for corners in (left, right)]
    for corners in gables:
        span = np.linalg.norm(np.subtract(corners[1], corners[0])) / materials.WALL_TEXTURE_SIZE
        uvs = np.array([(0, 0), (span, 0), (span / 2, rise / materials.WALL_TEXTURE_SIZE)])
        meshes.append(Mesh(np.asarray(corners, float), np.array([[0, 1, 2]]), uvs, gable))
    return meshes


def _facade(
    rng: np.random.Generator,
    span: float,
    floors: int,
    storey: float,
    glazing: Material,
    trim: Material,
    first_floor: int,
    pane: tuple[float, float],
    pitch: float,
) -> list[Mesh]:
    """Windows with sills on a wall over x in [-span/2, span/2] at y = 0, facing -y."""
    count = max(int((span - 0.6) / pitch), 1)
    width, height = pane
    meshes = []
    for floor in range(first_floor, floors):
        sill = floor * storey + (storey - height) * 0.45
        for i in range(count):
            x = (i + 0.5 - count / 2) * span / count
            left, right, top = x - width / 2, x + width / 2, sill + height
            corners = [(left, -0.03, sill), (right, -0.03, sill),
                       (right, -0.03, top), (left, -0.03, top)]  # fmt: skip
            uv = materials.atlas_uv(int(rng.integers(materials.ATLAS**2)))
            meshes.append(shapes.quad(corners, glazing, uv))
            meshes.append(shapes.box((width + 0.2, 0.16, 0.09), (x, -0.06, sill - 0.05), trim))
            meshes.append(
                shapes.box((width + 0.24, 0.10, 0.12), (x, -0.04, sill + height + 0.06), trim)
            )
    return meshes


def building(
    rng: np.random.Generator, palette: Palette, width: float, depth: float, kind: str
) -> list[Mesh]:
    """A "block" of flats, a "house" or a "hall", front at y = 0 facing -y, centred in x."""
    storey = rng.uniform(2.8, 3.4)
    if kind == "block":
        floors = int(rng.integers(3, 7))
        style = ("brick", "plaster", "plaster", "stone")[rng.integers(4)]
    elif kind == "house":
        floors = int(rng.integers(1, 3))
        style = ("brick", "plaster", "plaster")[rng.integers(3)]
    elif kind == "hall":
        floors, storey = int(rng.integers(1, 3)), rng.uniform(4.0, 5.5)
        style = ("panel", "panel", "brick")[rng.integers(3)]
    else:
        raise ValueError(f"no kind of building {kind!r}: choose block, house or hall")
    surface = _one_of(rng, palette.walls[style])
    glazing = _one_of(rng, palette.windows)
    trim = materials.plain("trim", np.array([0.84, 0.82, 0.77]) * rng.uniform(0.5, 1.08))
    height = floors * storey + (0.4 if kind == "block" else 0.0)
    meshes = [
        shapes.box(
            (width, depth, height + 2),
            (0, depth / 2, height / 2 - 1),
            surface,
            materials.WALL_TEXTURE_SIZE,
        ),
        shapes.box((width + 0.1, depth + 0.1, 0.5), (0, depth / 2, 0.2), palette.concrete),
    ]
    pane = (rng.uniform(0.9, 1.4), rng.uniform(1.2, 1.7))
    pitch = pane[0] + rng.uniform(0.8, 1.6)
    if kind == "hall":
        pane, pitch = (2.2, 1.0), 4.0
    shop = kind == "block" and rng.random() < 0.6
    first = 1 if shop or kind == "hall" else 0
    meshes += _facade(rng, width, floors, storey, glazing, trim, first, pane, pitch)
    for side in (-1, 1):  # flanks
        flank = _facade(rng, depth, floors, storey, glazing, trim, first, pane, pitch * 1.6)
        turn = shapes.rotation(yaw=side * np.pi / 2)
        meshes += shapes.moved(flank, (side * width / 2, depth / 2, 0), turn)

    def opening(x: float, span: float, tall: float, row: int) -> Mesh:
        corners = [(x - span / 2, -0.05, 0.1), (x + span / 2, -0.05, 0.1),
                   (x + span / 2, -0.05, tall), (x - span / 2, -0.05, tall)]  # fmt: skip
        picture = row * materials.ATLAS + int(rng.integers(materials.ATLAS))
        return shapes.quad(corners, palette.doors, materials.atlas_uv(picture))

    if shop:
        count = max(int(width / 4), 1)
        for i in range(count):
            x = (i + 0.5 - count / 2) * width / count
            meshes.append(opening(x, width / count - 0.7, storey * 0.86, int(rng.integers(2, 4))))
            if rng.random() < 0.4:  # awning
                colour = materials.plain("cloth", materials.muted(rng, 0.25, 0.8))
                half, top = width / count / 2 - 0.3, storey * 0.9
                meshes.append(
                    shapes.quad(
                        [(x - half, -1.2, top - 0.6), (x + half, -1.2, top - 0.6),
                         (x + half, -0.02, top), (x - half, -0.02, top)],
                        colour,
                    )
                )  # fmt: skip
    elif kind == "hall":
        for x in np.arange(-width / 2 + 3, width / 2 - 2, 6.0):
            meshes.append(opening(x, 3.6, 3.4, 1))
    else:
        meshes.append(opening(rng.uniform(-0.3, 0.3) * width, 1.1, 2.2, 0))
        if kind == "house" and rng.random() < 0.4:
            meshes.append(opening(width * 0.36, 2.4, 2.2, 1))

    if kind == "block":
        for floor in range(1, floors) if rng.random() < 0.3 else ():  # balconies
            for x in np.arange(-width / 2 + 2, width / 2 - 1, 4.5):
                z = floor * storey
                meshes.append(shapes.box((2.4, 1.1, 0.14), (x, -0.55, z), palette.concrete))
                meshes.append(shapes.box((2.4, 0.05, 0.9), (x, -1.08, z + 0.5), trim))
                for side in (-1, 1):
                    meshes.append(
                        shapes.box((0.05, 1.1, 0.9), (x + side * 1.18, -0.55, z + 0.5), trim)
                    )
        meshes.append(shapes.box((width + 0.5, depth + 0.5, 0.35), (0, depth / 2, height), trim))
    if kind == "house" or (kind == "block" and rng.random() < 0.45):
        across = kind == "house" and bool(rng.random() < 0.4)
        run = width / 2 if across else depth / 2
        rise = min(run * rng.uniform(0.5, 1.0), 5.0)
        meshes += _gable_roof(
            width,
            depth,
            height + (0.17 if kind == "block" else 0),
            rise,
            _one_of(rng, palette.roofs),
            surface,
            across,
        )
        chimney = (rng.uniform(-0.3, 0.3) * width, depth / 2 - 0.6, height + rise * 0.8)
        meshes.append(shapes.box((0.7, 0.7, 2.2), chimney, surface, materials.WALL_TEXTURE_SIZE))
    elif kind == "hall":
        meshes.append(shapes.box((width + 0.3, depth + 0.3, 0.5), (0, depth / 2, height), trim))
    return meshes
