"""Removes the noise of few light paths from radiance."""

from collections.abc import Sequence

import numpy as np

from diffdepth_jax.scenes.layouts import Camera
from diffdepth_jax.scenes.render.hits import Hits


def cut(radiance: np.ndarray, albedo: np.ndarray, hits: Hits) -> np.ndarray:
    """Radiance `[h w 3]` with light (radiance / albedo) clipped at its brightest 1%.

    Light is unbounded next to a lamp. A headlight's pool of light is so much brighter than the rest
    of the image that the threshold for even light would remove it.
    """
    light = radiance / (albedo + 0.02)
    if (surface := hits.depth > 0).any():
        light = np.minimum(light, np.quantile(light[surface], 0.99, axis=0))
    return light * (albedo + 0.02)


def smoothed(
    radiances: Sequence[tuple[np.ndarray, bool]],
    albedo: np.ndarray,
    hits: Hits,
    camera: Camera,
    passes: int = 3,
) -> list[np.ndarray]:
    """Averages noisy soft light over neighbouring pixels of the same surface.

    The edge-avoiding a-trous filter (Dammertz et al., 2010): windows of 5x5 pixels, with steps that
    double in each pass. It averages radiance / albedo, which preserves textures; noise-free normals
    and positions show which neighbours are in the same plane.

    Args:
        radiances: `[h w 3]`, each with whether it is light from all directions, so that much
            brighter pixels are noise.
        albedo: `[h w 3]`.
        hits: hits of the layout; radiance of the sky, without hits, is unchanged.
        camera: the viewpoint.
        passes: number of passes; 3 reach 14 pixels.
    """
    surface = hits.depth > 0
    if not surface.any():
        return [radiance for radiance, _ in radiances]
    height, width = hits.depth.shape
    point = hits.depth[..., None] * camera.rays()
    given = np.concatenate([hits.normal, point, surface[..., None]], axis=-1).astype(np.float32)
    normal, point = given[..., :3], given[..., 3:6]
    lights = []
    for radiance, even in radiances:
        light: np.ndarray = (radiance / (albedo + 0.02)).astype(np.float32)
        if even:  # fireflies (reflected bright clouds) would be smeared into blots
            light = np.minimum(light, 4 * np.median(light[surface], axis=0))
        lights.append(light)
    light = np.concatenate(lights, axis=-1)
    tolerance = 0.006 * hits.depth.astype(np.float32) + 0.02  # metres from the plane
    for step in (2**index for index in range(passes)):
        margin = ((2 * step, 2 * step), (2 * step, 2 * step), (0, 0))
        padded = np.pad(np.concatenate([given, light], axis=-1), margin)
        total, weights = np.zeros_like(light), np.zeros_like(tolerance)
        for down in range(5):
            for right in range(5):
                other = padded[down * step :, right * step :][:height, :width]
                away = np.einsum("hwc,hwc->hw", normal, other[..., 3:6] - point)
                alike = np.einsum("hwc,hwc->hw", normal, other[..., :3]).clip(0, 1)
                weight = _SPLINE[down] * _SPLINE[right] * other[..., 6] * alike**16
                weight = weight * np.exp(-((away / tolerance) ** 2))
                total += weight[..., None] * other[..., 7:]
                weights += weight
        light = total / np.maximum(weights, 1e-6)[..., None]
    smooth = np.split(light, len(radiances), axis=-1)
    return [
        np.where(surface[..., None], light * (albedo + 0.02), radiance)
        for light, (radiance, _) in zip(smooth, radiances, strict=True)
    ]


_SPLINE = np.array([1, 4, 6, 4, 1], np.float32) / 16


def despeckled(radiance: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Clamps each pixel between the third lowest and third highest of its eight neighbours.

    Few paths find light focused by glass, so single pixels are far too bright or too dark. Edges
    and highlights are preserved unless they are only a pixel wide. Neighbours outside `where` are
    ignored.
    """
    height, width = where.shape
    inside = np.pad(where, 1)
    padded = np.pad(radiance, ((1, 1), (1, 1), (0, 0)))
    neighbours = []
    for down in range(3):
        for right in range(3):
            if (down, right) != (1, 1):
                window = slice(down, down + height), slice(right, right + width)
                neighbours.append(np.where(inside[window][..., None], padded[window], radiance))
    ordered = np.sort(np.stack(neighbours), axis=0)
    return np.clip(radiance, ordered[2], ordered[-3])
