"""Rendering passes over a scene."""

from collections.abc import Sequence

import mitsuba as mi
import mitsuba.scalar_rgb as rgb
import numpy as np

from diffdepth_jax.scenes.layouts import Camera, Layout
from diffdepth_jax.scenes.render import parts


def render_pass(
    scene: rgb.Scene, camera: Camera, integrator: dict, samples: int, seed: int
) -> np.ndarray:
    """Radiance `[h w 3]` from an integrator, at the same positions within pixels for all."""
    sensor = parts.sensor(camera, {"type": "ldsampler", "sample_count": samples})
    return _rendered(scene, sensor, mi.load_dict(integrator), seed)


def traced(
    scene: rgb.Scene,
    camera: Camera,
    samples: int,
    bounces: int,
    seed: int,
    crop: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Radiance `[h w 3]` along paths with up to `bounces` bounces; `crop` as in `parts.sensor`."""
    path = mi.load_dict({"type": "path", "max_depth": bounces, "rr_depth": 4})
    sampler = {"type": "independent", "sample_count": samples}
    sensor = parts.sensor(camera, sampler, crop)
    return _rendered(scene, sensor, path, seed)


def _rendered(
    scene: rgb.Scene, sensor: rgb.Sensor, integrator: rgb.Integrator, seed: int
) -> np.ndarray:
    return np.array(mi.render(scene, sensor=sensor, integrator=integrator, seed=mi.UInt32(seed)))


def glow(layout: Layout, samples: int, seed: int) -> np.ndarray:
    """Radiance `[h w 3]` of emitting surfaces; everything else is black."""
    if all(mesh.material.emission is None for mesh in layout.meshes):
        return np.zeros((*layout.camera.size, 3), np.float32)
    emitted = [parts.light(parts.emitted(mesh.material)) for mesh in layout.meshes]
    scene = shining(layout, emitted, 0.0)
    return render_pass(scene, layout.camera, {"type": "path", "max_depth": 1}, samples, seed)


def shining(layout: Layout, radiances: Sequence[dict], background: float) -> rgb.Scene:
    """The meshes, each emitting its radiance, and panels and sky that of `background`."""
    even = parts.uniform((background,) * 3)
    panels = map(parts.panel_mesh, layout.panels)
    shapes = [parts.mesh(mesh, None, {"type": "area", "radiance": even}) for mesh in panels]
    for mesh, radiance in zip(layout.meshes, radiances, strict=True):
        shapes.append(parts.mesh(mesh, None, {"type": "area", "radiance": radiance}))
    return parts.scene([*shapes, {"type": "constant", "radiance": even}])
