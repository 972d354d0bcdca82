"""A spinning 64-beam lidar, as sparse depth in a camera next to it.

Beam angles are those of the Velodyne HDL-64E on KITTI's car (Geiger et al., "Vision meets
Robotics", 2013): an upper block from +2 to -8.33 degrees in steps of 1/3 degree, and a lower block
from -8.83 to -24.33 in steps of 1/2. Rotating 9.3 times per second, with 0.16 degrees between
firings, it covers 4 to 5% of the pixels of KITTI's camera. A camera with fewer pixels per degree
gets proportionally fewer beams and firings, so the fraction of pixels and the look of the scan
lines stay the same. The lidar is at the camera's centre, so its depth equals the dense depth
wherever it hits, without parallax.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from diffdepth_jax.scenes.layouts import Layout
from diffdepth_jax.scenes.materials import GROUND

REFERENCE_FOCAL = 721.5  # pixels; the camera for which there are 64 beams


@dataclass(frozen=True)
class Lidar:
    """Beam angles in degrees in the level vehicle, ranges in metres, fractions in [0, 1].

    Attributes:
        elevations: elevation of each beam.
        azimuth_step: rotation between firings.
        max_range: maximum measurable distance.
        dropout: fraction of returns lost at short range; `far_dropout` is lost in addition at
            `max_range`.
        jitter: standard deviation of the firing angles.
    """

    elevations: tuple[float, ...] = tuple(np.linspace(2, -25 / 3, 32)) + tuple(
        np.linspace(-53 / 6, -73 / 3, 32)
    )
    azimuth_step: float = 0.16
    max_range: float = 80.0
    dropout: float = 0.03
    far_dropout: float = 0.15
    jitter: float = 0.02


@dataclass(frozen=True, eq=False)
class Medium:
    """Causes of lidar failures; clear air and matt surfaces by default.

    Attributes:
        extinction: extinction coefficient of the air, 1/m.
        transparent: bool `[h w]`, glass and mirrors, or None.
        wet: bool `[h w]`, wet ground, or None.
        behind: `[h w]` planar depth in metres behind transparent surfaces, 0 for nothing (or a
            mirror); or None.
    """

    extinction: float = 0.0
    transparent: Bool[np.ndarray, "h w"] | None = None
    wet: Bool[np.ndarray, "h w"] | None = None
    behind: Float[np.ndarray, "h w"] | None = None


def medium(
    layout: Layout, surface: Int[np.ndarray, "h w"], behind: Float[np.ndarray, "h w"]
) -> Medium:
    """The medium of a layout; `surface` and `behind` are from `render.Hits`."""
    painted = np.array([mesh.material.role == "glass" for mesh in layout.meshes] + [False])
    kinds = np.array([mesh.material.kind for mesh in layout.meshes] + ["opaque"])
    wet = [mesh.material.role in GROUND and mesh.material.gloss > 0.5 for mesh in layout.meshes]
    number = np.where(surface < len(layout.meshes), surface, -1)  # panels reflect like walls
    clear = np.isin(kinds, ("glass", "thin_glass"))[number]
    return Medium(
        extinction=layout.weather.extinction,
        transparent=painted[number] | (kinds != "opaque")[number],
        wet=np.array([*wet, False])[number],
        behind=np.where(clear, behind, 0.0),  # what is behind dark panes is not modelled
    )


GLASS_LOSS = 0.92  # fraction of beams that glass or a mirror does not return
WET_LOSS = 0.55  # the same for wet ground, which reflects most light away
BACKSCATTER = 0.35  # fraction of beams lost in fog that return from the fog itself


def scan(
    depth: Float[np.ndarray, "h w"],
    intrinsics: Float[np.ndarray, "3 3"],
    mount: Float[np.ndarray, "3 3"],
    rng: np.random.Generator,
    lidar: Lidar = Lidar(),
    medium: Medium | None = None,
) -> Float[np.ndarray, "h w"]:
    """Sparse depth as measured by the lidar.

    With a `medium`, the scan has realistic failures. Glass and mirrors return few beams from their
    surface; the others continue to what is `behind`, or are lost. Wet ground loses beams too. In
    fog, the two-way loss exp(-2 extinction r) adds to the 1/r^2 falloff, so the range shrinks to
    where both equal the loss at `max_range` in clear air; some of the lost beams return from the
    fog, close to the sensor (Bijelic et al., "A benchmark for lidar sensors in fog", 2018).

    Args:
        depth: `[h w]` exact planar depth in metres, 0 where there is none (sky).
        intrinsics: `[3 3]`, with pixel centres at integers.
        mount: `[3 3]`, whose columns are the camera's x, y, z axes in the level vehicle (x right, y
            forward, z up).
        rng: determines which returns are lost.
        lidar: the sensor.
        medium: causes of failures; None for clear air and surfaces that always return the beam.

    Returns:
        `[h w]` metres, equal to `depth` where a beam hits, otherwise 0; with a `medium`, also false
        returns.
    """
    row, column, lost = _beams(depth.shape, intrinsics, mount, rng, lidar)
    offset = np.stack(
        [
            (column - intrinsics[0, 2]) / intrinsics[0, 0],
            (row - intrinsics[1, 2]) / intrinsics[1, 1],
            np.ones(len(row)),
        ],
        axis=-1,
    )
    stretch = np.linalg.norm(offset, axis=-1)  # distance over planar depth
    measured = depth[row, column]
    if medium is not None:
        measured = _failed(measured, stretch, row, column, rng, lidar, medium)
    distance = measured * stretch
    odds = lidar.dropout + lidar.far_dropout * (distance / lidar.max_range) ** 2
    hit = (distance > 0) & (distance <= lidar.max_range) & (lost >= odds)
    sparse = np.zeros_like(depth)
    sparse[row[hit], column[hit]] = measured[hit]
    return sparse


def _failed(
    measured: np.ndarray,
    stretch: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    rng: np.random.Generator,
    lidar: Lidar,
    medium: Medium,
) -> np.ndarray:
    """Planar depth `[n]` measured by beams through a medium, 0 for no return."""
    measured = measured.copy()
    if medium.transparent is not None:
        through = medium.transparent[row, column] & (rng.random(len(row)) < GLASS_LOSS)
        beyond = 0.0 if medium.behind is None else medium.behind[row, column]
        measured = np.where(through, beyond, measured)
    if medium.wet is not None:
        measured[medium.wet[row, column] & (rng.random(len(row)) < WET_LOSS)] = 0.0
    if medium.extinction > 0:
        distance = measured * stretch
        strength = np.exp(-2 * medium.extinction * distance) / np.maximum(distance, 1e-3) ** 2
        # Surfaces differ: some return more light than the darkest one visible at max_range.
        reflectivity = np.exp(rng.uniform(0, 2.0, len(row)))
        blind = (strength * reflectivity < 1 / lidar.max_range**2) | (distance == 0)
        near = rng.gamma(3.0, min(1.0, 0.06 / medium.extinction), len(row)) + 1.0
        share = BACKSCATTER * (1 - np.exp(-20 * medium.extinction))
        scattered = blind & (rng.random(len(row)) < share) & ((near < distance) | (distance == 0))
        measured = np.where(scattered, near / stretch, np.where(blind, 0.0, measured))
    return measured


def _beams(
    size: tuple[int, int],
    intrinsics: np.ndarray,
    mount: np.ndarray,
    rng: np.random.Generator,
    lidar: Lidar,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of the pixel that each beam hits, `[n]`, and a random number in [0, 1]."""
    height, width = size
    thinning = max(REFERENCE_FOCAL / intrinsics[1, 1], 1.0)
    count = max(round(len(lidar.elevations) / thinning), 1)
    chosen = np.linspace(0, len(lidar.elevations) - 1, count).round().astype(int)
    elevation = np.radians(np.asarray(lidar.elevations)[chosen])
    step = np.radians(lidar.azimuth_step * thinning)
    azimuth = np.arange(-np.pi / 2, np.pi / 2, step)[None, :] + rng.uniform(0, step, (count, 1))
    azimuth = azimuth + rng.normal(0, np.radians(lidar.jitter) * thinning, azimuth.shape)
    elevation = elevation[:, None] + rng.normal(
        0, np.radians(lidar.jitter) * thinning, azimuth.shape
    )
    beams = np.stack(
        [
            np.sin(azimuth) * np.cos(elevation),
            np.cos(azimuth) * np.cos(elevation),
            np.sin(elevation),
        ],
        axis=-1,
    ).reshape(-1, 3)
    lost = rng.random(len(beams))
    pixels = beams @ mount @ intrinsics.T
    ahead = pixels[:, 2] > 1e-6
    beams, pixels, lost = beams[ahead], pixels[ahead], lost[ahead]
    column = np.rint(pixels[:, 0] / pixels[:, 2]).astype(int)
    row = np.rint(pixels[:, 1] / pixels[:, 2]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return row[inside], column[inside], lost[inside]
