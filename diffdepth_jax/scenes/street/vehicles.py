"""Cars, vans, lorries and buses.

A vehicle is a list of meshes in its own axes, in metres: x right, y forward, z up from the ground.
"""

import numpy as np

from diffdepth_jax.scenes import materials, shapes
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.street.palette import Palette

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
    power = 0.38  # a superellipse with nearly flat sides and rounded edges
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
    """A pane in front of a quadrilateral face: the face, shrunk and shifted outwards."""
    middle = corners.mean(axis=0)
    normal = np.cross(corners[1] - corners[0], corners[3] - corners[0])
    normal /= np.linalg.norm(normal)
    return shapes.quad(middle + (corners - middle) * shrink + normal * offset, material)


def _lights(palette: Palette, length: float, width: float, front: float, rear: float) -> list[Mesh]:
    """Lamps and plates at both ends, and a grille; `front` and `rear` are the heights."""
    meshes = []
    for side in (-1, 1):
        x = side * width * 0.36
        meshes.append(
            shapes.ball((0.17, 0.10, 0.10), (x, length / 2 - 0.06, front), palette.headlight)
        )
        left, right, low, high = x - 0.12, x + 0.12, front - 0.06, front + 0.06
        y = length / 2 + 0.045  # the glass of the lamp, which emits light at night
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
    meshes += _cabin(palette, kind, paint, length, width, belt, height)
    radius = 0.37 if kind == "offroad" else 0.31
    meshes += _wheels(palette, width, (-0.31 * length, 0.31 * length), radius)
    meshes += _wheel_houses(palette, width, (-0.31 * length, 0.31 * length), radius)
    for side in (-1, 1):  # mirrors
        meshes.append(
            shapes.ball(
                (0.11, 0.07, 0.08), (side * (width / 2 + 0.06), 0.17 * length, belt + 0.06), paint
            )
        )
    meshes += _lights(palette, length, width, belt * 0.72, belt * 0.82)
    return meshes


def _cabin(
    palette: Palette,
    kind: str,
    paint: Material,
    length: float,
    width: float,
    belt: float,
    height: float,
) -> list[Mesh]:
    """A car's cabin from the belt line up, with its windows."""
    # (rear, front) along the length, at the belt and at the roof.
    low = {"hatchback": (-0.47, 0.24), "saloon": (-0.36, 0.24)}.get(kind, (-0.485, 0.24))
    high = {"hatchback": (-0.38, 0.06), "saloon": (-0.22, 0.07)}.get(kind, (-0.44, 0.07))
    half_low, half_high = width * 0.455, width * 0.37

    def rectangle(ends: tuple[float, float], half: float, z: float) -> np.ndarray:
        rear, front = ends[0] * length, ends[1] * length
        return np.array([(half, rear, z), (half, front, z), (-half, front, z), (-half, rear, z)])

    base, top = rectangle(low, half_low, belt * 0.98), rectangle(high, half_high, height - 0.06)
    crown = rectangle((high[0] + 0.02, high[1] - 0.02), half_high * 0.88, height)
    meshes = [shapes.loft(np.stack([base, top, crown]), paint)]
    for index in range(4):  # right, front, left, rear
        after = (index + 1) % 4
        face = np.stack([base[index], base[after], top[after], top[index]])
        if index % 2:
            meshes.append(_pane(face, palette.car_glass, 0.88, 0.012))
        else:  # a pillar divides the side windows
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
    return meshes


def _wheel_houses(
    palette: Palette, width: float, axles: tuple[float, ...], radius: float
) -> list[Mesh]:
    """Dark arches behind the wheels."""
    meshes = []
    for y in axles:
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
    return meshes


def van(rng: np.random.Generator, palette: Palette, *, wide: bool = True) -> list[Mesh]:
    """A delivery van, or perhaps a lorry or bus if `wide`: one tall body with a windscreen."""
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
    meshes += _glazing(palette, kind, length, width, height, nose, screen)
    radius = 0.34 if kind == "van" else 0.48
    meshes += _wheels(palette, width, (-0.3 * length, 0.34 * length), radius)
    meshes += _lights(palette, length, width, 0.75, 0.95)
    return meshes


def _glazing(
    palette: Palette,
    kind: str,
    length: float,
    width: float,
    height: float,
    nose: float,
    screen: tuple[tuple[float, float], tuple[float, float]],
) -> list[Mesh]:
    """Windscreen, side windows and rear window of a van, lorry or bus.

    `screen`: (forward, up) of the windscreen's upper and lower edges.
    """
    front = length / 2
    meshes = []
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
    return meshes
