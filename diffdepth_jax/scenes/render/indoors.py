"""Scenes lit by panels, including glass and mirrors."""

import mitsuba.scalar_rgb as rgb
import numpy as np

from diffdepth_jax.scenes.layouts import Camera, Layout
from diffdepth_jax.scenes.render import denoising, parts, passes
from diffdepth_jax.scenes.render.hits import Hits


def radiance(layout: Layout, hits: Hits, sky: dict, samples: int, seed: int) -> np.ndarray:
    """Radiance `[h w 3]` of scenes lit by panels, including glass and mirrors.

    Traces paths with many bounces; noise is smoothed within opaque surfaces.
    """
    camera = layout.camera
    surfaces = [parts.mesh(mesh, parts.bsdf(mesh.material)) for mesh in layout.meshes]
    through = _see_through(layout, hits)
    bounces = 12 if through.any() else 5
    lamps = [parts.spot(lamp, camera) for lamp in layout.lamps]
    scene = parts.scene([*surfaces, sky, *lamps, *map(parts.panel, layout.panels)])
    light = passes.traced(scene, camera, samples, bounces, seed)
    own_colours = [parts.texture(mesh.material.texture) for mesh in layout.meshes]
    white = passes.shining(layout, own_colours, 1.0)
    colours = passes.traced(white, camera, 2 * samples, 1, seed)
    (radiance,) = denoising.smoothed([(light, True)], colours, hits, camera)
    if through.any():
        radiance[through] = _in_detail(scene, camera, through, 8 * samples, bounces, seed)
    return radiance


def _see_through(layout: Layout, hits: Hits) -> np.ndarray:
    """Bool `[h w]`: pixels that show glass or a mirror, even if only in a corner."""
    kinds = [mesh.material.kind != "opaque" for mesh in layout.meshes]
    middle = np.array([*kinds, *[False] * len(layout.panels), False])[hits.surface]
    either = middle.copy()
    for one, other in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        either[one] |= middle[other]
        either[:, one] |= middle[:, other]
    return either


TILE = 12  # pixels


def _in_detail(
    scene: rgb.Scene, camera: Camera, where: np.ndarray, samples: int, bounces: int, seed: int
) -> np.ndarray:
    """Radiance `[n 3]` of the pixels `where`, rendered in small windows around them."""
    radiance = np.zeros((*where.shape, 3), np.float32)
    for top in range(0, where.shape[0], TILE):
        for left in range(0, where.shape[1], TILE):
            rows, columns = np.nonzero(where[top : top + TILE, left : left + TILE])
            if len(rows) == 0:
                continue
            seed += 1  # equal noise in all windows would be visible
            height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
            down, right = top + int(rows.min()), left + int(columns.min())
            crop = (down, right, height, width)
            part = passes.traced(scene, camera, samples, bounces, seed, crop)
            radiance[down : down + height, right : right + width] = part
    return denoising.despeckled(radiance, where)[where]
