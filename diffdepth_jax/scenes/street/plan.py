"""The plan of a street: its style, centre line and lanes.

A street follows a curved and hilly centre line. Objects are placed at (s, t): metres along it and
to its right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffdepth_jax.scenes import shapes
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.street.palette import Palette


@dataclass(frozen=True)
class Style:
    """Parameters of a kind of street; pairs are ranges to sample from."""

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
    fence: float  # probability of a fence, hedge or wall per side
    people: float  # pedestrians per 10 m and side
    traffic: float  # vehicles per 10 m and lane
    bend: float  # maximum curvature, 1/m
    hills: float  # height of hills, m


STYLES: dict[str, Style] = {
    "city": Style(
        (1, 2, 2, 3), (2.9, 3.4), 0.65, (1.8, 4.0), (0.0, 1.0), ("block",), (9.0, 20.0), (0.0, 1.5),
        0.15, 0.0, 0.0, 0.55, 0.22, 1 / 150, 1.5,
    ),
    "avenue": Style(
        (3, 4, 4), (3.0, 3.5), 0.5, (3.0, 5.5), (2.0, 12.0), ("block", "block", "hall"),
        (14.0, 28.0), (1.0, 10.0), 0.9, 0.15, 0.2, 0.35, 0.25, 1 / 200, 1.5,
    ),
    "suburb": Style(
        (1, 2, 2), (2.7, 3.2), 0.4, (1.2, 2.2), (3.0, 10.0), ("house",), (7.0, 13.0), (2.0, 8.0),
        0.3, 0.9, 0.75, 0.15, 0.12, 1 / 100, 3.0,
    ),
    "village": Style(
        (2,), (2.6, 3.1), 0.2, (0.8, 1.6), (0.0, 5.0), ("house", "house", "block"), (7.0, 13.0),
        (1.0, 12.0), 0.2, 0.5, 0.5, 0.2, 0.12, 1 / 90, 4.0,
    ),
    "country": Style(
        (2,), (2.8, 3.5), 0.0, (0.0, 0.6), (8.0, 30.0), ("house", "hall"),
        (9.0, 18.0), (25.0, 90.0), 0.5, 1.5, 0.5, 0.02, 0.15, 1 / 90, 5.0,
    ),
    "works": Style(
        (2, 2, 3), (3.2, 3.8), 0.3, (0.8, 2.2), (3.0, 16.0), ("hall",), (18.0, 36.0), (5.0, 18.0),
        0.15, 0.3, 0.6, 0.08, 0.18, 1 / 180, 2.0,
    ),
}  # fmt: skip

START, END, STEP = -16.0, 220.0, 2.0  # extent of the modelled street, metres from the camera


class CentreLine:
    """The centre line, and placement of objects along it."""

    def __init__(self, rng: np.random.Generator, style: Style):
        s = np.arange(START, END + STEP, STEP)
        # Straight near the camera in half of the cases; the bend starts somewhere ahead.
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
        # Rise of the land behind the houses on the left and right.
        self.slopes = rng.normal(0, 0.05, size=2) * style.hills / 2

    def heading(self, s: ArrayLike) -> np.ndarray:
        """Direction at `s`, radians; 0 at the camera, positive to the left."""
        return np.interp(np.asarray(s, float), self._s, self._heading)

    def grade(self, s: float) -> float:
        """Slope angle at `s`, radians."""
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
        """Moves objects to (s, t, z), rotated by `yaw` from the street; `tilt` follows its
        slope."""
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
        """A strip along the street from t[0] on the left to t[1] on the right."""
        s = np.arange(START, END + STEP, STEP)
        left, right = self.point(s, t[0], z[0]), self.point(s, t[1], z[1])
        return shapes.ribbon(right, left, material, np.asarray(u), s / repeat)


KERB = 0.13  # height of the pavement above the road, metres

BAY = 2.1  # width of a parking strip, metres


@dataclass(frozen=True, eq=False)
class Plan:
    """The sampled plan of a street; pairs are (left, right), sides are 0 and 1."""

    name: str
    style: Style
    line: CentreLine
    palette: Palette
    lanes: int
    lane_width: float
    bays: tuple[bool, bool]  # parked cars at the kerb
    pavement: float
    setbacks: tuple[float, float]
    side_road: tuple[float, int] | None = None  # where, and on which side

    @property
    def half(self) -> float:
        """Distance from the centre line to the parked cars."""
        return self.lanes * self.lane_width / 2 + 0.2

    @property
    def edges(self) -> tuple[float, float]:
        """Distance from the centre line to the kerbs."""
        return self.half + BAY * self.bays[0], self.half + BAY * self.bays[1]

    def lane(self, index: int) -> float:
        """The centre of a lane, counted from the left."""
        return (index + 0.5 - self.lanes / 2) * self.lane_width

    def crossed(self, s: float, side: int, margin: float = 4.5) -> bool:
        """Whether the side road is within `margin` of `s`."""
        if self.side_road is None or self.side_road[1] != side:
            return False
        return abs(s - self.side_road[0]) < margin


def along(rng: np.random.Generator, per_ten_metres: float, first: float, last: float) -> np.ndarray:
    """Random positions along the street with the given density, nearest first."""
    count = rng.poisson(per_ten_metres * (last - first) / 10)
    return np.sort(rng.uniform(first, last, size=count))


def sway(rng: np.random.Generator, spread: float) -> float:
    """Offset from a lane's centre in metres, small enough to keep vehicles in their lanes apart."""
    return float(np.clip(rng.normal(0, spread), -0.3, 0.3))
