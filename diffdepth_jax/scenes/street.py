"""Procedural streets.

A layout is drawn from a generator alone, so one seed gives one street. Streets follow a curved and
hilly centre line; things are placed at (s, t): metres along it and to the right of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from diffdepth_jax.scenes import materials, objects, shapes
from diffdepth_jax.scenes.layouts import Camera, Layout, Sky, pinhole
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh


@dataclass(frozen=True)
class _Style:
    """How a kind of street is built; pairs are ranges to draw from."""

    lanes: tuple[int, ...]
    lane_width: tuple[float, float]
    parking: float  # probability of parked cars at a kerb
    pavement: tuple[float, float]
    setback: tuple[float, float]  # from the pavement to the house fronts
    houses: tuple[str, ...]
    house_width: tuple[float, float]
    house_gap: tuple[float, float]
    trees: float  # trees per 10 m at the kerb
    garden: float  # plants per 10 m behind the pavement
    fence: float  # probability of a fence, hedge or wall on a side
    people: float  # pedestrians per 10 m and side
    traffic: float  # vehicles per 10 m and lane
    bend: float  # highest curvature, 1/m
    hills: float  # height of hills, m


STYLES: dict[str, _Style] = {
    "city": _Style(
        (1, 2, 2, 3), (2.9, 3.4), 0.65, (1.8, 4.0), (0.0, 1.0), ("block",), (9.0, 20.0), (0.0, 1.5),
        0.15, 0.0, 0.0, 0.55, 0.22, 1 / 150, 1.5,
    ),
    "avenue": _Style(
        (3, 4, 4), (3.0, 3.5), 0.5, (3.0, 5.5), (2.0, 12.0), ("block", "block", "hall"),
        (14.0, 28.0), (1.0, 10.0), 0.9, 0.15, 0.2, 0.35, 0.25, 1 / 200, 1.5,
    ),
    "suburb": _Style(
        (1, 2, 2), (2.7, 3.2), 0.4, (1.2, 2.2), (3.0, 10.0), ("house",), (7.0, 13.0), (2.0, 8.0),
        0.3, 0.9, 0.75, 0.15, 0.12, 1 / 100, 3.0,
    ),
    "village": _Style(
        (2,), (2.6, 3.1), 0.2, (0.8, 1.6), (0.0, 5.0), ("house", "house", "block"), (7.0, 13.0),
        (1.0, 12.0), 0.2, 0.5, 0.5, 0.2, 0.12, 1 / 90, 4.0,
    ),
    "country": _Style(
        (2,), (2.8, 3.5), 0.0, (0.0, 0.6), (8.0, 30.0), ("house", "hall"),
        (9.0, 18.0), (25.0, 90.0), 0.5, 1.5, 0.5, 0.02, 0.15, 1 / 90, 5.0,
    ),
    "works": _Style(
        (2, 2, 3), (3.2, 3.8), 0.3, (0.8, 2.2), (3.0, 16.0), ("hall",), (18.0, 36.0), (5.0, 18.0),
        0.15, 0.3, 0.6, 0.08, 0.18, 1 / 180, 2.0,
    ),
}  # fmt: skip

START, END, STEP = -16.0, 220.0, 2.0  # the modelled part of the street, metres from the camera


class _Street:
    """The centre line, and placing things along it."""

    def __init__(self, rng: np.random.Generator, style: _Style):
        s = np.arange(START, END + STEP, STEP)
        # Straight near the camera as often as not; the bend sets in somewhere ahead.
        onset, length = rng.uniform(-10, 50), rng.uniform(20, 80)
        bend = style.bend * rng.uniform(-1, 1) * (rng.random() < 0.75)
        curvature = bend / (1 + np.exp(-(s - onset) / 6)) / (1 + np.exp((s - onset - length) / 6))
        curvature = curvature + style.bend * 0.25 * rng.uniform(-1, 1)
        heading = np.cumsum(curvature) * STEP
        zero = round(-START / STEP)
        self._heading = heading - heading[zero]
        x, y = -np.cumsum(np.sin(self._heading)) * STEP, np.cumsum(np.cos(self._heading)) * STEP
        period, phase = rng.uniform(110, 260), rng.uniform(0, 2 * np.pi)
        hill = style.hills * rng.uniform(0.2, 1.0) * np.sin(2 * np.pi * s / period + phase)
        z = hill + rng.uniform(-0.03, 0.03) * s
        self._s, self._x, self._y, self._z = s, x - x[zero], y - y[zero], z - z[zero]
        # Rise of the land behind the houses, on the left and on the right.
        self.slopes = rng.normal(0, 0.05, size=2) * style.hills / 2

    def heading(self, s: ArrayLike) -> np.ndarray:
        return np.interp(s, self._s, self._heading)

    def grade(self, s: float) -> float:
        """Angle of climb at `s`, radians."""
        rise = np.interp(s + 1.0, self._s, self._z) - np.interp(s - 1.0, self._s, self._z)
        return float(np.arctan2(rise, 2.0))

    def point(self, s: ArrayLike, t: ArrayLike, z: ArrayLike = 0.0) -> np.ndarray:
        """World position `[... 3]` at (s, t), `z` above the centre line."""
        s, t, z = np.broadcast_arrays(np.asarray(s, float), t, z)
        heading = self.heading(s)
        return np.stack(
            [
                np.interp(s, self._s, self._x) + t * np.cos(heading),
                np.interp(s, self._s, self._y) + t * np.sin(heading),
                np.interp(s, self._s, self._z) + z,
            ],
            axis=-1,
        )

    def put(
        self,
        meshes: Sequence[Mesh],
        s: float,
        t: float,
        z: float,
        yaw: float,
        *,
        tilt: bool = False,
    ) -> list[Mesh]:
        """Things moved to (s, t, z), turned by `yaw` from the street; `tilt` follows its grade."""
        turn = shapes.rotation(yaw=float(self.heading(s)))
        if tilt:
            turn = turn @ shapes.rotation(pitch=self.grade(s))
        return shapes.moved(meshes, self.point(s, t, z), turn @ shapes.rotation(yaw=yaw))

    def strip(
        self,
        t: tuple[float, float],
        z: tuple[float, float],
        material: Material,
        u: tuple[float, float],
        repeat: float,
    ) -> Mesh:
        """A band along the street from t[0] on the left to t[1] on the right."""
        s = np.arange(START, END + STEP, STEP)
        left, right = self.point(s, t[0], z[0]), self.point(s, t[1], z[1])
        return shapes.ribbon(right, left, material, np.asarray(u), s / repeat)


KERB = 0.13  # height of the pavement above the road, metres


BAY = 2.1  # width of a strip of parked cars, metres


@dataclass(frozen=True, eq=False)
class _Plan:
    """What was drawn for a street; pairs are (left, right), sides are 0 and 1."""

    name: str
    style: _Style
    line: _Street
    palette: objects.Palette
    lanes: int
    lane_width: float
    bays: tuple[bool, bool]  # parked cars at the kerb
    pavement: float
    setbacks: tuple[float, float]
    side_road: tuple[float, int] | None = None  # where, and on which side

    @property
    def half(self) -> float:
        """From the centre line to where parked cars begin."""
        return self.lanes * self.lane_width / 2 + 0.2

    @property
    def edges(self) -> tuple[float, float]:
        """From the centre line to the kerbs."""
        return self.half + BAY * self.bays[0], self.half + BAY * self.bays[1]

    def lane(self, index: int) -> float:
        """The middle of a lane, counted from the left."""
        return (index + 0.5 - self.lanes / 2) * self.lane_width

    def crossed(self, s: float, side: int, margin: float = 4.5) -> bool:
        """Whether the side road is within `margin` of `s`."""
        if self.side_road is None or self.side_road[1] != side:
            return False
        return abs(s - self.side_road[0]) < margin


def street(rng: np.random.Generator, size: tuple[int, int], focal: float) -> Layout:
    """A random street seen from a car on it.

    Args:
        rng: decides everything; equal generators give equal layouts.
        size: (height, width) of the picture in pixels.
        focal: focal length over the picture's width.
    """
    name = str(rng.choice(list(STYLES), p=[0.25, 0.14, 0.21, 0.14, 0.16, 0.10]))
    style = STYLES[name]
    line, palette = _Street(rng, style), objects.palette(rng)
    grass, paving = materials.grass(rng), materials.paving(rng)
    plan = _Plan(
        name=name,
        style=style,
        line=line,
        palette=palette,
        lanes=int(rng.choice(style.lanes)),
        lane_width=rng.uniform(*style.lane_width),
        bays=(bool(rng.random() < style.parking), bool(rng.random() < style.parking)),
        pavement=rng.uniform(*style.pavement),
        setbacks=tuple(rng.uniform(*style.setback, size=2)),
    )
    meshes = _ground(rng, plan, grass, paving)
    if rng.random() < 0.45:
        plan = replace(plan, side_road=(float(rng.uniform(14, 70)), int(rng.integers(2))))
        meshes += _side_road(rng, plan)
    if rng.random() < 0.3 and name != "country":
        meshes += _zebra(plan, float(rng.uniform(8, 40)))
    for side in range(2):
        meshes += _houses(rng, plan, side)
        meshes += _roadside(rng, plan, side)
        if plan.bays[side]:
            meshes += _parked(rng, plan, side)
    own = plan.lanes - 1 if plan.lanes < 3 else plan.lanes - 1 - int(rng.integers(2))
    meshes += _traffic(rng, plan, own)
    meshes += _horizon(rng, plan)
    camera = _camera(rng, line, size, focal, plan.lane(own) + _sway(rng, 0.25))
    sky = Sky(
        sun_elevation=float(np.radians(rng.uniform(18, 62))),
        sun_azimuth=float(rng.uniform(-np.pi, np.pi)),
        turbidity=float(rng.uniform(2.0, 6.0)),
        cloudiness=float(rng.beta(0.6, 0.9)),
        cloud_seed=int(rng.integers(2**31)),
    )
    return Layout(tuple(shapes.merged(meshes)), camera, sky)


def _camera(
    rng: np.random.Generator, line: _Street, size: tuple[int, int], focal: float, t: float
) -> Camera:
    height = rng.uniform(1.3, 2.1)
    yaw = np.radians(rng.normal(0, 4.0))
    pitch, roll = np.radians(rng.uniform(-6.0, 3.0)), np.radians(rng.normal(0, 0.8))
    vehicle = shapes.rotation(yaw=float(line.heading(0.0)), pitch=line.grade(0.0))
    camera_axes = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # columns: right, down, forward
    mount = shapes.rotation(yaw, pitch, roll) @ camera_axes
    return Camera(size, pinhole(size, focal), line.point(0.0, t, height), vehicle @ mount, mount)


def _ground(rng: np.random.Generator, plan: _Plan, grass: Material, paving: Material) -> list[Mesh]:
    """Road, kerbs, pavements and the land at both sides."""
    line, lanes, lane_width = plan.line, plan.lanes, plan.lane_width
    edges, pavement, setbacks = plan.edges, plan.pavement, plan.setbacks
    width = edges[0] + edges[1]
    lines: list[tuple[float, str]] = []
    left = edges[0] - lanes * lane_width / 2  # the leftmost lane's left edge, from the road's edge
    middle = "dashed" if rng.random() < 0.7 else "solid"
    for lane in range(1, lanes):
        centre = 2 * lane == lanes
        lines.append((left + lane * lane_width, middle if centre else "dashed"))
    if rng.random() < 0.6:
        lines += [(left + 0.1, "solid"), (left + lanes * lane_width - 0.1, "solid")]
    if rng.random() < 0.12:
        lines = [(t, "yellow" if 2 * i + 2 == lanes else kind) for i, (t, kind) in enumerate(lines)]
    asphalt = materials.road(rng, width, lines, brightness=rng.uniform(0.27, 0.46))
    kerb = materials.plain("kerb", np.array([0.66, 0.65, 0.62]) * rng.uniform(0.8, 1.1))
    dirt = materials.plain("dirt", (0.42, 0.36, 0.28))
    yard = paving if max(setbacks) < (4.0 if rng.random() < 0.5 else 1.2) else grass
    meshes = [line.strip((-edges[0], edges[1]), (0, 0), asphalt, (0, 1), 12.0)]
    for side, sign in enumerate((-1, 1)):
        t = edges[side]
        bands: list[tuple[float, float, float, float, Material, float]] = []
        if pavement > 0.7:
            bands.append((t, t, 0.0, KERB, kerb, 1.0))
            bands.append((t, t + 0.15, KERB, KERB, kerb, 1.0))
            bands.append((t + 0.15, t + pavement, KERB, KERB, paving, 2.4))
        else:
            bands.append((t, t + pavement + 0.4, 0.0, KERB, dirt, 2.0))
        inner = bands[-1][1]
        flat = inner + setbacks[side] + 16.0
        bands.append((inner, flat, KERB, KERB, yard, 2.4 if yard is paving else 4.0))
        far = flat + 45.0
        bands.append((flat, far, KERB, KERB + 45.0 * line.slopes[side], grass, 6.0))
        for t0, t1, z0, z1, material, repeat in bands:
            if sign > 0:
                meshes.append(
                    line.strip((t0, t1), (z0, z1), material, (0, (t1 - t0) / repeat), repeat)
                )
            else:
                meshes.append(
                    line.strip((-t1, -t0), (z1, z0), material, (0, (t1 - t0) / repeat), repeat)
                )
    # A plain just below everything else, so that the land does not end in mid-air.
    low = min(float(mesh.vertices[:, 2].min()) for mesh in meshes) - 0.6
    reach = 700.0
    corners = [
        (-reach, -reach, low),
        (reach, -reach, low),
        (reach, reach, low),
        (-reach, reach, low),
    ]
    meshes.append(shapes.quad(corners, grass, (0, 0, reach / 4, reach / 4)))
    return meshes


def _side_road(rng: np.random.Generator, plan: _Plan) -> list[Mesh]:
    (s, side), line, edge = plan.side_road, plan.line, plan.edges[plan.side_road[1]]
    sign = (-1, 1)[side]
    width = rng.uniform(5.5, 7.0)
    asphalt = materials.road(
        rng, width, [(width / 2, "dashed")], brightness=rng.uniform(0.28, 0.44)
    )
    out = edge + np.array([-0.3, 0.0, 0.5, 20.0, 45.0])
    height = np.array([0.012, 0.012, KERB + 0.012, KERB + 0.012, KERB + 0.012])
    near = line.point(s - width / 2, sign * out, height)
    far = line.point(s + width / 2, sign * out, height)
    left, right = (far, near) if sign > 0 else (near, far)
    meshes = [shapes.ribbon(right, left, asphalt, np.array([0, 1]), out / 12.0)]
    if rng.random() < 0.5:  # a car waits to come out
        waiting = objects.car(rng, plan.palette)
        own_lane, t = s + sign * width / 4, sign * (edge + 3.4)
        meshes += line.put(waiting, own_lane, t, KERB, sign * np.pi / 2)
    return meshes


def _zebra(plan: _Plan, s: float) -> list[Mesh]:
    line = plan.line
    white = materials.plain("marking", (0.86, 0.86, 0.84))
    meshes = []
    for t in np.arange(-plan.edges[0] + 0.4, plan.edges[1] - 0.4 - 0.5, 1.0):
        corners = [line.point(s, t, 0.012), line.point(s, t + 0.5, 0.012),
                   line.point(s + 3, t + 0.5, 0.012), line.point(s + 3, t, 0.012)]  # fmt: skip
        meshes.append(shapes.quad(corners, white))
    return meshes


def _houses(rng: np.random.Generator, plan: _Plan, side: int) -> list[Mesh]:
    """A row of buildings along one side."""
    sign, style, setback = (-1, 1)[side], plan.style, plan.setbacks[side]
    meshes = []
    s = START + rng.uniform(-2, 12)
    while s < 160:
        width = rng.uniform(*style.house_width)
        depth = rng.uniform(9, 14)
        kind = style.houses[rng.integers(len(style.houses))]
        own_setback = max(setback + rng.normal(0, 0.12) * setback, 0.05)
        house = objects.building(rng, plan.palette, width, depth, kind)
        t = sign * (plan.edges[side] + max(plan.pavement, 0.5) + own_setback)
        if not plan.crossed(s + width / 2, side, margin=width / 2 + 5.0):
            meshes += plan.line.put(house, s + width / 2, t, KERB, -sign * np.pi / 2)
        s += width + rng.uniform(*style.house_gap)
    return meshes


def _along(
    rng: np.random.Generator, per_ten_metres: float, first: float, last: float
) -> np.ndarray:
    """Random places along the street at the given density, nearest first."""
    count = rng.poisson(per_ten_metres * (last - first) / 10)
    return np.sort(rng.uniform(first, last, size=count))


def _roadside(rng: np.random.Generator, plan: _Plan, side: int) -> list[Mesh]:
    """Lamps, signs, trees, pedestrians, gardens and fences of one side."""
    name, style, palette = plan.name, plan.style, plan.palette
    edge, pavement, setback = plan.edges[side], plan.pavement, plan.setbacks[side]
    sign = (-1, 1)[side]
    facing_road = -sign * np.pi / 2
    kerb = edge + min(0.45, max(pavement * 0.3, 0.25))
    back = edge + max(pavement, 0.5)
    meshes: list[Mesh] = []

    def put(things: Sequence[Mesh], s: float, t: float, yaw: float) -> None:
        if not plan.crossed(s, side):
            meshes.extend(plan.line.put(things, s, sign * t, KERB, yaw))

    if name != "country" or rng.random() < 0.3:
        spacing, height = rng.uniform(18, 34), rng.uniform(5.5, 9.0)
        if side == 1 or rng.random() < 0.5:
            post = objects.lamp_post(rng, palette, height)
            for s in np.arange(rng.uniform(4, spacing), 150, spacing):
                put(post, s, kerb, facing_road)
    elif side == 0 and rng.random() < 0.7:
        pole = objects.utility_pole(palette)
        for s in np.arange(rng.uniform(6, 30), 180, 32.0):
            put(pole, s, back + 2.0, facing_road)
    for s in _along(rng, 0.3, 7, 80):
        towards = 0.0 if sign > 0 or rng.random() < 0.4 else np.pi
        put(objects.sign(rng, palette), s, kerb, towards + rng.normal(0, 0.12))
    if name in ("city", "avenue") and rng.random() < 0.4:
        put(objects.traffic_light(rng, palette), rng.uniform(9, 35), kerb, 0.0)
    if pavement > 1.0:
        for s in _along(rng, 0.15, 5, 60):
            put(objects.bin_or_box(rng, palette), s, kerb + 0.1, facing_road)
    room = pavement - 0.8
    for s in _along(rng, style.people, 4, 60):
        t = edge + 0.5 + rng.random() * max(room, 0.3)
        yaw = (0.0 if rng.random() < 0.5 else np.pi) + rng.normal(0, 0.3)
        put(objects.person(rng, palette), s, t, yaw)
    if setback > 2.5 or pavement > 2.6 or name == "country":
        verge = kerb + 0.4 if pavement > 2.6 else back + rng.uniform(0.8, 2.0)
        plant = objects.conifer if rng.random() < 0.15 else objects.tree
        size = 0.75 if setback < 2.5 else 1.0
        for s in _along(rng, style.trees, 5, 150):
            put(plant(rng, palette, size), s, verge, rng.uniform(0, 2 * np.pi))
    if setback > 2.0:
        for s in _along(rng, style.garden, 2, 130):
            kind = rng.random()
            t = back + 1.2 + rng.random() * max(setback - 2.0, 0.3)
            if kind < 0.55:
                put(objects.bush(rng, palette), s, t, rng.uniform(0, 2 * np.pi))
            elif kind < 0.85 and setback > 4:
                put(objects.tree(rng, palette, rng.uniform(0.5, 1.0)), s, t, 0.0)
            elif setback > 4:
                put(objects.conifer(rng, palette, rng.uniform(0.4, 0.9)), s, t, 0.0)
        if rng.random() < style.fence:
            kinds = (
                ("rail", "pickets") if name == "country" else ("pickets", "wall", "hedge", "hedge")
            )
            kind = kinds[rng.integers(len(kinds))]
            length = 6.0
            if kind == "hedge":
                piece = objects.hedge(rng, palette, length, rng.uniform(0.8, 1.9))
            else:
                piece = objects.fence(rng, palette, length, kind)
            distance = edge + 0.8 if kind == "rail" else back + 0.35
            for s in np.arange(START, 110, length):
                if rng.random() < 0.88:  # gates
                    put(piece, s, distance, facing_road)
    return meshes


def _vehicle(rng: np.random.Generator, palette: objects.Palette, space: float) -> list[Mesh]:
    """A vehicle for a lane or bay as wide as `space`; lorries and buses are 2.5 m wide."""
    if rng.random() < 0.16:
        return objects.van(rng, palette, wide=space >= 3.0)
    return objects.car(rng, palette)


def _sway(rng: np.random.Generator, spread: float) -> float:
    """Metres off the middle of a lane, less than what keeps vehicles in their lanes apart."""
    return float(np.clip(rng.normal(0, spread), -0.3, 0.3))


def _parked(rng: np.random.Generator, plan: _Plan, side: int) -> list[Mesh]:
    """Cars at the kerb, nose to tail with gaps."""
    sign = (-1, 1)[side]
    dark = replace(  # parked cars have no lights on
        plan.palette,
        beam=replace(plan.palette.beam, role="beam_off"),
        taillight=replace(plan.palette.taillight, role="taillight_off"),
    )
    meshes = []
    s = START + rng.uniform(0, 10)
    fill = rng.uniform(0.4, 0.95)
    while s < 120:
        if rng.random() < fill and not plan.crossed(s, side, margin=6.0):
            yaw = (0.0 if sign > 0 or rng.random() < 0.3 else np.pi) + rng.normal(0, 0.03)
            vehicle = _vehicle(rng, dark, BAY)
            t = sign * (plan.half + BAY / 2) + rng.normal(0, 0.1)
            meshes += plan.line.put(vehicle, s, t, 0.0, yaw, tilt=True)
        s += rng.uniform(5.4, 7.2) if s > 0 else 6.0
    return meshes


def _traffic(rng: np.random.Generator, plan: _Plan, own: int) -> list[Mesh]:
    """Moving vehicles, with room kept free ahead of the camera in its `own` lane."""
    meshes = []
    for lane in range(plan.lanes):
        oncoming = plan.lanes > 1 and lane < plan.lanes // 2
        free_from = rng.uniform(6.5, 24) if lane == own else 1.0
        for s in _along(rng, plan.style.traffic * 1.4, free_from, 130):
            if s < free_from:
                continue
            yaw = (np.pi if oncoming else 0.0) + rng.normal(0, 0.03)
            vehicle = _vehicle(rng, plan.palette, plan.lane_width)
            t = plan.lane(lane) + _sway(rng, 0.15)
            meshes += plan.line.put(vehicle, s + 2.5, t, 0.0, yaw, tilt=True)
            free_from = s + rng.uniform(9, 16)
    return meshes


def _horizon(rng: np.random.Generator, plan: _Plan) -> list[Mesh]:
    """What closes the view: buildings, woods and hills from 165 m on."""
    line, palette = plan.line, plan.palette
    meshes = []
    end = line.point(END, 0.0)
    base = end[2]
    if plan.name in ("city", "avenue", "works") or rng.random() < 0.3:
        for _ in range(10):
            t = rng.uniform(-130, 130)
            if abs(t) < 9:
                continue
            block = objects.building(rng, palette, rng.uniform(14, 26), 12.0, "block")
            meshes += line.put(block, rng.uniform(165, 215), t, -1.0, 0.0)
    leaves = palette.foliage[rng.integers(len(palette.foliage))]
    for angle in np.linspace(-1.25, 1.25, 46):  # a belt of trees around the far end
        distance = 200 + rng.uniform(-15, 25)
        x, y = distance * np.sin(angle), distance * np.cos(angle)
        if np.hypot(x - end[0], y - end[1]) < 14:
            continue
        radius = rng.uniform(6, 10)
        meshes.append(
            shapes.ball(
                (radius, radius, radius * rng.uniform(0.6, 1.0)),
                (x, y, base * rng.uniform(0.5, 1.0) + 1.0),
                leaves,
                rng=rng,
                bumps=0.25,
            )
        )
    if rng.random() < 0.5:  # hills behind
        hill = materials.plain("hill", np.array([0.40, 0.47, 0.47]) * rng.uniform(0.8, 1.15))
        for _ in range(5):
            angle = rng.uniform(-1.0, 1.0)
            radius = rng.uniform(60, 140)
            meshes.append(
                shapes.ball(
                    (radius, radius * 0.5, radius * rng.uniform(0.12, 0.28)),
                    (520 * np.sin(angle), 520 * np.cos(angle), base - 2.0),
                    hill,
                    rng=rng,
                    bumps=0.2,
                    steps=(12, 20),
                )
            )
    return meshes
