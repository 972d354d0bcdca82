"""The picture of a layout."""

import mitsuba as mi
import numpy as np
from jaxtyping import Float, UInt8

from diffdepth_jax.scenes import weather
from diffdepth_jax.scenes.layouts import Camera, Layout
from diffdepth_jax.scenes.render import indoors, outdoors, parts, passes, skies
from diffdepth_jax.scenes.render.hits import Hits, first_hits

SAMPLES = 4  # light paths per pixel


@parts.scalar_on_one_thread()
def render(
    layout: Layout, *, samples: int = SAMPLES, seed: int = 0, hits: Hits | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of a layout.

    Args:
        layout: what to render.
        samples: light paths per pixel: 4, 16, 64 ... for layouts without panels, glass and mirrors.
            Pixels that show glass or mirrors, where light and colour cannot be separated, use 8
            times as many.
        seed: seed of the light paths; equal seeds give equal bytes.
        hits: `first_hits(layout)`, if already known; equal for all conditions of a scene.

    Returns:
        uint8 `[h w 3]`.

    Raises:
        ValueError: if `samples` is not valid for the layout.
    """
    camera, view = layout.camera, layout.weather
    hits = first_hits(layout) if hits is None else hits
    sun, sky = None, parts.constant(layout.ambient)
    if layout.sky is not None:
        sun, sky = skies.sun_and_sky(layout.sky)
    if layout.panels or any(mesh.material.kind != "opaque" for mesh in layout.meshes):
        radiance = indoors.radiance(layout, hits, sky, samples, seed)
        glow = passes.glow(layout, samples, seed)
    else:
        radiance, glow = outdoors.radiance_and_glow(layout, hits, sun, sky, samples, seed)
    if view.extinction > 0:
        clarity = _transmittance(camera, hits, view.extinction)
        radiance = weather.hazy(radiance, clarity, skies.airlight(layout, sky))
        glow = glow * clarity[..., None]
    to_sun = None if layout.sky is None else layout.sky.to_sun
    return weather.developed(radiance + glow, glow, camera, view, to_sun)


def _transmittance(camera: Camera, hits: Hits, extinction: float) -> Float[np.ndarray, "h w"]:
    """Transmittance of air with `extinction` (1/m): exp(-extinction * distance).

    At object outlines, where a pixel's rays end at different distances, the mean of four rays.
    """
    rays = camera.rays()
    distance = hits.depth * np.linalg.norm(rays, axis=-1)
    clarity = np.where(distance > 0, np.exp(-extinction * distance), 0.0)
    edge = np.zeros(clarity.shape, bool)
    for axis in range(2):
        step = np.abs(np.diff(clarity, axis=axis)) > 0.04
        first, second = [slice(None)] * 2, [slice(None)] * 2
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        edge[tuple(first)] |= step
        edge[tuple(second)] |= step
    rows, columns = np.nonzero(edge)
    right = (rays[0, 1] - rays[0, 0]) / 4
    down = (rays[1, 0] - rays[0, 0]) / 4
    origin = camera.position.tolist()
    total = np.zeros(len(rows))
    for across, along in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        directions = rays[rows, columns] + across * right + along * down
        found = [
            hits.scene.ray_intersect_preliminary(mi.Ray3f(origin, direction)).t  # or infinite
            for direction in directions.tolist()
        ]
        total += np.exp(-extinction * np.array(found) * np.linalg.norm(directions, axis=-1)) / 4
    clarity[rows, columns] = total
    return clarity
