"""A spinning 64-beam lidar, reduced to what a camera beside it sees: sparse depth.

The beams' angles are those of the Velodyne HDL-64E on KITTI's car (Geiger et al., "Vision meets
Robotics", 2013): an upper block from +2 to -8.33 degrees every third of a degree, a lower one from
-8.83 to -24.33 every half. Turning 9.3 times a second, 0.16 degrees a firing, it fills 4 to 5% of
the pixels of KITTI's camera. A camera of fewer pixels a degree gets proportionally fewer beams and
firings, so the share of pixels and the look of the scan lines stay. The lidar sits at the camera's
centre: its depth is the dense depth wherever it hit, without parallax.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

REFERENCE_FOCAL = 721.5  # pixels; the camera that 64 beams belong to


@dataclass(frozen=True)
class Lidar:
    """Beam angles in degrees, level vehicle; ranges in metres; shares in [0, 1].

    Attributes:
        elevations: upwards angle of each beam.
        azimuth_step: turn between two firings.
        max_range: longest measurable distance.
        dropout: share of returns lost at short range; `far_dropout` more at `max_range`.
        jitter: deviation of the firing angles.
    """

    elevations: tuple[float, ...] = tuple(np.linspace(2, -25 / 3, 32)) + tuple(
        np.linspace(-53 / 6, -73 / 3, 32)
    )
    azimuth_step: float = 0.16
    max_range: float = 80.0
    dropout: float = 0.03
    far_dropout: float = 0.15
    jitter: float = 0.02


def scan(
    depth: Float[np.ndarray, "h w"],
    intrinsics: Float[np.ndarray, "3 3"],
    mount: Float[np.ndarray, "3 3"],
    rng: np.random.Generator,
    lidar: Lidar = Lidar(),
) -> Float[np.ndarray, "h w"]:
    """Sparse depth as the lidar would measure it.

    Args:
        depth: `[h w]` exact planar depth in metres, 0 where there is none (sky).
        intrinsics: `[3 3]`, pixel centres at whole numbers.
        mount: `[3 3]`, columns are the camera's x, y, z axes in the level vehicle (x right,
            y forward, z up).
        rng: decides which returns are lost.
        lidar: the sensor.

    Returns:
        `[h w]` metres, equal to `depth` where a beam hit, else 0.
    """
    height, width = depth.shape
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
    row, column, lost = row[inside], column[inside], lost[inside]
    offset = np.stack(
        [
            (column - intrinsics[0, 2]) / intrinsics[0, 0],
            (row - intrinsics[1, 2]) / intrinsics[1, 1],
            np.ones(len(row)),
        ],
        axis=-1,
    )
    distance = depth[row, column] * np.linalg.norm(offset, axis=-1)
    odds = lidar.dropout + lidar.far_dropout * (distance / lidar.max_range) ** 2
    hit = (distance > 0) & (distance <= lidar.max_range) & (lost >= odds)
    sparse = np.zeros_like(depth)
    sparse[row[hit], column[hit]] = depth[row[hit], column[hit]]
    return sparse
