"""Plain dataclasses with everything that a renderer needs to know about a scene.

World axes: x right, y forward, z up, metres. Radiance and intensity are linear RGB in an arbitrary
unit per layout, as images are exposed automatically.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffdepth_jax.scenes.shapes import Mesh, rotation

RGB = tuple[float, float, float]


def rgb(values: np.ndarray) -> RGB:
    """An array `[3]` as plain numbers."""
    red, green, blue = values.tolist()
    return red, green, blue


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    Attributes:
        size: (height, width) in pixels.
        intrinsics: `[3 3]`; (0, 0) is the centre of the top-left pixel.
        position: `[3]` in the world, metres.
        orientation: `[3 3]`, whose columns are the camera's x (right), y (down) and z (forward)
            axes in world coordinates.
        mount: `[3 3]`, the same axes in coordinates of the level vehicle that carries it.
    """

    size: tuple[int, int]
    intrinsics: Float[np.ndarray, "3 3"]
    position: Float[np.ndarray, "3"]
    orientation: Float[np.ndarray, "3 3"]
    mount: Float[np.ndarray, "3 3"]

    def rays(self) -> Float[np.ndarray, "h w 3"]:
        """World directions through the pixel centres, with unit planar depth: a point at depth d is
        `position + d * ray`, regardless of the angle."""
        height, width = self.size
        column, row = np.meshgrid(np.arange(width), np.arange(height))
        pixels = np.stack([column, row, np.ones_like(row)], axis=-1)
        return pixels @ np.linalg.inv(self.intrinsics).T @ self.orientation.T


def pinhole(size: tuple[int, int], focal: float) -> Float[np.ndarray, "3 3"]:
    """Intrinsics `[3 3]` with the principal point at the image centre.

    Args:
        size: (height, width) in pixels.
        focal: focal length relative to the image width; 0.58 for KITTI.
    """
    height, width = size
    return np.array(
        [
            [focal * width, 0.0, (width - 1) / 2],
            [0.0, focal * width, (height - 1) / 2],
            [0.0, 0.0, 1.0],
        ]
    )


def mounted(yaw: float, pitch: float, roll: float) -> Float[np.ndarray, "3 3"]:
    """A camera's x, y and z axes in the level vehicle, as columns `[3 3]`: forward, then rotated.

    Args:
        yaw, pitch, roll: as in `shapes.rotation`.
    """
    ahead = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # right, down, forward
    return rotation(yaw, pitch, roll) @ ahead


@dataclass(frozen=True)
class Sky:
    """Sun and sky.

    Attributes:
        sun_elevation, sun_azimuth: radians; azimuth 0 is ahead, positive to the right.
        turbidity: haze of the clear sky, 1 to 10.
        cloudiness: fraction of the sky covered by clouds, 0 to 1.
        cloud_seed: seed of the clouds.
    """

    sun_elevation: float
    sun_azimuth: float
    turbidity: float
    cloudiness: float
    cloud_seed: int

    @property
    def to_sun(self) -> Float[np.ndarray, "3"]:
        """Unit vector towards the sun."""
        level = np.cos(self.sun_elevation)
        return np.array(
            [
                level * np.sin(self.sun_azimuth),
                level * np.cos(self.sun_azimuth),
                np.sin(self.sun_elevation),
            ]
        )


@dataclass(frozen=True)
class Lamp:
    """A point light: emits light but has no extent.

    Attributes:
        position, direction: position, and direction of its light, in world coordinates.
        intensity: linear RGB.
        cutoff: half the cone angle, radians.
        beam: half the angle with full intensity, radians; less than `cutoff`.
    """

    position: tuple[float, float, float]
    direction: tuple[float, float, float]
    intensity: RGB
    cutoff: float
    beam: float


@dataclass(frozen=True)
class Panel:
    """A light-emitting rectangle: a window, or a ceiling light.

    Attributes:
        corners: four points, counter-clockwise seen from the emitting side.
        radiance: linear RGB.
    """

    corners: tuple[tuple[float, float, float], ...]
    radiance: RGB


@dataclass(frozen=True)
class Weather:
    """Effects of air, lens and sensor on an image; `weather.py` applies them.

    Attributes:
        extinction: extinction of the air, 1/m; 0 is perfectly clear.
        rain: streaks of rain and drops on the lens, 0 (dry) to 1 (heavy).
        snow: falling flakes, 0 to 1.
        glare: veiling glare of a visible sun, 0 to 1.
        halo: fraction of a visible lamp's light that air and lens scatter around it, 0 to 1.
        noise: sensor noise: standard deviation at black, relative to white.
        key: target brightness of the exposure; 0.18 for daylight.
        seed: seed of drops, flakes and noise.
    """

    extinction: float = 0.0
    rain: float = 0.0
    snow: float = 0.0
    glare: float = 0.0
    halo: float = 0.0
    noise: float = 0.0
    key: float = 0.18
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Layout:
    """One scene: its surfaces, its camera and its light.

    Attributes:
        meshes: the surfaces, in an order that conditions preserve (they may append).
        camera: the viewpoint.
        sky: sun and sky; None indoors and at night.
        ambient: radiance from all directions, if there is no `sky`.
        lamps, panels: other lights.
        weather: effects between scene and image.
    """

    meshes: tuple[Mesh, ...]
    camera: Camera
    sky: Sky | None
    ambient: RGB = (0.0, 0.0, 0.0)
    lamps: tuple[Lamp, ...] = ()
    panels: tuple[Panel, ...] = ()
    weather: Weather = Weather()


# A scene with the same geometry and camera, but other light, weather or materials.
Condition = Callable[[Layout, np.random.Generator], Layout]
