"""Opaque scenes lit by the sky or lamps."""

from dataclasses import replace
from typing import NamedTuple

import mitsuba as mi
import mitsuba.scalar_rgb as rgb
import numpy as np

from diffdepth_jax.scenes import materials
from diffdepth_jax.scenes.layouts import Layout
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.render import denoising, parts, passes, skies
from diffdepth_jax.scenes.render.hits import Hits


def radiance_and_glow(
    layout: Layout, hits: Hits, sun: dict | None, sky: dict, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Radiance `[h w 3]` of opaque scenes lit by the sky or lamps, and their glow `[h w 3]`.

    The glow is emitted light, not included in the first. One scene is rendered in several passes.
    Surfaces also emit faintly in their own colour, as if lit evenly: this approximates all light
    after the first bounce, and seen directly it gives the colours. All passes use the same
    positions within pixels (a low-discrepancy sampler), so that they can be subtracted:

    - sunlight only, whose shadows stay sharp;
    - light of lamps, and light of sky and surroundings, which are noisy and are smoothed within
      surfaces;
    - reflections in water on the ground, which are sharper;
    - the sky itself.
    """
    if samples & (samples - 1) or not samples.bit_length() % 2:
        raise ValueError(f"samples is {samples}; outdoors it must be a power of 4: 4, 16, 64")
    camera = layout.camera
    around = skies.mean_radiance(layout, sun, sky)
    stage = _built(layout, sun, sky, around)

    def trace(integrator: dict) -> np.ndarray:
        return passes.render_pass(stage.scene, camera, integrator, samples, seed)

    seen = trace({"type": "path", "max_depth": 1})
    bounced = trace({"type": "direct", "emitter_samples": 0, "bsdf_samples": 1}) - seen
    shots = 4 if layout.lamps else 1  # each at one randomly chosen lamp
    lit = np.zeros_like(seen)
    if stage.lights:
        lit = trace({"type": "direct", "emitter_samples": shots, "bsdf_samples": 0}) - seen
        lit = lit / shots  # the integrator sums them for lights without extent
    mirrored = np.zeros_like(seen)
    if any(_wet(mesh.material) for mesh in layout.meshes):
        _flood(stage, layout)
        mirrored = trace({"type": "direct", "emitter_samples": 1, "bsdf_samples": 1}) - seen
        white = np.ones_like(mirrored)
        (mirrored,) = denoising.smoothed([(mirrored, False)], white, hits, camera, passes=1)
    values = mi.traverse(stage.dome)
    for key in ("scale", "radiance.value"):
        if key in values:
            values[key] = values[key] * 0
    values.update()
    surfaces, glow = trace({"type": "path", "max_depth": 1}), np.zeros_like(seen)
    if any(mesh.material.emission is not None for mesh in layout.meshes):
        for part, mesh in zip(stage.meshes, layout.meshes, strict=True):
            _shine(part, parts.emitted(mesh.material))
        glow = trace({"type": "path", "max_depth": 1})
    colours = (surfaces - glow).clip(0) / around
    if layout.lamps:
        soft = [(bounced, True), (denoising.cut(lit, colours, hits), False)]
        bounced, lit = denoising.smoothed(soft, colours, hits, camera)
    else:
        (bounced,) = denoising.smoothed([(bounced, True)], colours, hits, camera)
    return seen - surfaces + bounced + lit + mirrored, glow


class _Stage(NamedTuple):
    """A layout under the sky in Mitsuba; passes may modify it for later passes."""

    scene: rgb.Scene
    meshes: list[rgb.Mesh]
    dome: rgb.Emitter
    lights: list[rgb.Emitter]


def _built(layout: Layout, sun: dict | None, sky: dict, around: float) -> _Stage:
    """The layout with matt ground, where each surface emits its own colour scaled by `around`."""
    meshes = []
    for mesh in layout.meshes:
        shine = {
            "type": "area",
            "sampling_weight": 0.0,  # only found by rays that hit it
            "radiance": parts.light(parts.radiance(mesh.material, around)),
        }
        matt = replace(mesh.material, gloss=0.0) if _wet(mesh.material) else mesh.material
        meshes.append(parts.mesh(mesh, parts.bsdf(matt), shine))
    lamps = [parts.spot(lamp, layout.camera) for lamp in layout.lamps]
    lights = [mi.load_dict(light) for light in ([] if sun is None else [sun]) + lamps]
    dome = mi.load_dict(sky | {"sampling_weight": 0.0 if lights else 1.0})
    return _Stage(parts.scene([*meshes, dome, *lights]), meshes, dome, lights)


def _flood(stage: _Stage, layout: Layout) -> None:
    """Keeps only what water on the ground reflects; everything else is black.

    This includes the sky, lamps, and surfaces in their own colours. As the water is slightly rough,
    lights are stretched towards the camera. They are small, so rays must also be sent to them.
    """
    # a black mirror, as no rays are sent from it
    black = mi.load_dict({"type": "conductor", "specular_reflectance": parts.uniform((0.0,) * 3)})
    for part, mesh in zip(stage.meshes, layout.meshes, strict=True):
        part.set_bsdf(mi.load_dict(_water(mesh.material)) if _wet(mesh.material) else black)
        _weigh(part.emitter(), mesh.material.radiance + 1e-6)  # there may be no lamps at all
    for light in stage.lights:
        _weigh(light, 0.0)
    _weigh(stage.dome, 1.0)
    stage.scene.parameters_changed()


def _weigh(emitter: rgb.Emitter, weight: float) -> None:
    """Changes how often rays are sent to a light; the scene must then be notified."""
    values = mi.traverse(emitter)
    values["sampling_weight"] = weight
    values.update()


def _shine(part: rgb.Mesh, radiance: np.ndarray) -> None:
    """Changes a mesh's emission to `[h w 3]`, with the size it was created with, or `[1 1 3]`."""
    values = mi.traverse(part.emitter())
    if "radiance.data" in values:
        texture = values["radiance.data"]
        # assignment would compare the numbers one by one
        texture.array.numpy()[:] = np.broadcast_to(radiance, texture.shape).ravel()
    else:
        values["radiance.value"] = mi.Color3f(radiance[0, 0].tolist())
    values.update()


def _wet(material: Material) -> bool:
    return material.role in materials.GROUND and material.gloss > 0


def _water(material: Material) -> dict:
    """The water on wet ground, over black."""
    water = {
        "type": "roughplastic",
        "diffuse_reflectance": parts.uniform((0.0,) * 3),
        "int_ior": 1.33,
        "distribution": "ggx",
        "alpha": max(1.0 - material.gloss, 0.001),
    }
    return {"type": "twosided", "bsdf": water}
