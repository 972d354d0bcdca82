"""Pictures and exact depth of a layout, by Mitsuba 3 (variant `scalar_rgb`).

The only file that imports mitsuba; it comes with the optional extra `render`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import drjit
import mitsuba as mi
import numpy as np
from jaxtyping import Float, Int, UInt8

from diffdepth_jax.scenes import materials, weather
from diffdepth_jax.scenes.layouts import Camera, Lamp, Layout, Panel, Sky
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh, quad

mi.set_variant("scalar_rgb")  # the llvm_* variants abort where the system's LLVM is old
drjit.set_thread_count(1)  # the noise depends on it; frames are rendered side by side instead


SAMPLES = 4  # light paths per pixel


class Hits(NamedTuple):
    """What the ray through each pixel's centre meets.

    Attributes:
        depth: `[h w]` planar depth (along the camera's axis) of the first surface, of whatever
            kind, metres; 0 for none.
        normal: `[h w 3]` its unit normal in the world, 0 for none.
        surface: `[h w]` its index in the layout's meshes, with panels counted after them; -1 for
            none.
        behind: `[h w]` planar depth of the first surface that is not glass; 0 for none.
        scene: what the rays met, to shoot more of them.
    """

    depth: Float[np.ndarray, "h w"]
    normal: Float[np.ndarray, "h w 3"]
    surface: Int[np.ndarray, "h w"]
    behind: Float[np.ndarray, "h w"]
    scene: mi.Scene


def render(
    layout: Layout, *, samples: int = SAMPLES, seed: int = 0, hits: Hits | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of a layout.

    Args:
        layout: what to render.
        samples: light paths per pixel: 4, 16, 64 ... for layouts without panels, glass and mirrors.
            Pixels that show glass or mirrors, where light and colour cannot be separated, get 8
            times as many.
        seed: of the light paths; equal seeds give equal bytes.
        hits: `first_hits(layout)`, if known already: conditions of one scene have the same.

    Returns:
        uint8 `[h w 3]`.

    Raises:
        ValueError: if `samples` does not suit the layout.
    """
    camera, view = layout.camera, layout.weather
    hits = first_hits(layout) if hits is None else hits
    sun, sky = _lights(layout.sky) if layout.sky else (None, _constant(layout.ambient))
    if layout.panels or any(mesh.material.kind != "opaque" for mesh in layout.meshes):
        radiance, glow = _indoors(layout, hits, sky, samples, seed), _glow(layout, samples, seed)
    else:
        radiance, glow = _outdoors(layout, hits, sun, sky, samples, seed)
    if view.extinction > 0:
        clarity = _transmittance(camera, hits, view.extinction)
        radiance = weather.hazy(radiance, clarity, _airlight(layout, sky))
        glow = glow * clarity[..., None]
    to_sun = None if layout.sky is None else layout.sky.to_sun
    return weather.developed(radiance + glow, glow, camera, view, to_sun)


def _outdoors(
    layout: Layout, hits: Hits, sun: dict | None, sky: dict, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Radiance `[h w 3]` of opaque things under the sky, or lamps, and their glow `[h w 3]`.

    The glow is emitted light; it is not in the first. One scene, rendered by its parts.
    Surfaces also shine faintly in their own colour, as if lit evenly: that stands for all light
    after the first bounce, and seen directly it gives the colours. All passes share their places in
    the pixel (a low-discrepancy sampler), so that passes can be subtracted:

    - light of the sun alone, whose shadows stay sharp;
    - light of lamps, and light of sky and surroundings, which are noisy, and smoothed within
      surfaces;
    - what water on the ground mirrors, which is sharper than that;
    - the sky itself.
    """
    if samples & (samples - 1) or not samples.bit_length() % 2:
        raise ValueError(f"samples is {samples}; outdoors it must be a power of 4: 4, 16, 64")
    camera = layout.camera
    around = _around(layout, sun, sky)
    stage = _built(layout, sun, sky, around)

    def trace(integrator: dict) -> np.ndarray:
        return _pass(stage.scene, camera, integrator, samples, seed)

    seen = trace({"type": "path", "max_depth": 1})
    bounced = trace({"type": "direct", "emitter_samples": 0, "bsdf_samples": 1}) - seen
    shots = 4 if layout.lamps else 1  # each at one of the lamps, chosen at random
    lit = np.zeros_like(seen)
    if stage.lights:
        lit = trace({"type": "direct", "emitter_samples": shots, "bsdf_samples": 0}) - seen
        lit = lit / shots  # the integrator adds them up for lights without extent
    mirrored = np.zeros_like(seen)
    if any(_wet(mesh.material) for mesh in layout.meshes):
        _flood(stage, layout)
        mirrored = trace({"type": "direct", "emitter_samples": 1, "bsdf_samples": 1}) - seen
        white = np.ones_like(mirrored)
        (mirrored,) = _smoothed([(mirrored, False)], white, hits, camera, passes=1)
    values = mi.traverse(stage.dome)
    for key in ("scale", "radiance.value"):
        if key in values:
            values[key] = values[key] * 0
    values.update()
    surfaces, glow = trace({"type": "path", "max_depth": 1}), np.zeros_like(seen)
    if any(mesh.material.emission is not None for mesh in layout.meshes):
        for part, mesh in zip(stage.meshes, layout.meshes, strict=True):
            _shine(part, _emitted(mesh.material))
        glow = trace({"type": "path", "max_depth": 1})
    colours = (surfaces - glow).clip(0) / around
    if layout.lamps:
        soft = [(bounced, True), (_cut(lit, colours, hits), False)]
        bounced, lit = _smoothed(soft, colours, hits, camera)
    else:
        (bounced,) = _smoothed([(bounced, True)], colours, hits, camera)
    return seen - surfaces + bounced + lit + mirrored, glow


class _Stage(NamedTuple):
    """A layout under the sky as Mitsuba has it; passes may change it for those after them."""

    scene: mi.Scene
    meshes: list[mi.Mesh]
    dome: mi.Emitter
    lights: list[mi.Emitter]


def _built(layout: Layout, sun: dict | None, sky: dict, around: float) -> _Stage:
    """The layout with matt ground, each surface shining in its own colour by `around`."""
    meshes = []
    for mesh in layout.meshes:
        shine = {
            "type": "area",
            "sampling_weight": 0.0,  # found by rays that hit it alone
            "radiance": _light(_radiance(mesh.material, around)),
        }
        matt = replace(mesh.material, gloss=0.0) if _wet(mesh.material) else mesh.material
        meshes.append(_mesh(mesh, _bsdf(matt), shine))
    lamps = [_spot(lamp, layout.camera) for lamp in layout.lamps]
    lights = [mi.load_dict(light) for light in [sun] * bool(sun) + lamps]
    dome = mi.load_dict(sky | {"sampling_weight": 0.0 if lights else 1.0})
    return _Stage(_scene([*meshes, dome, *lights]), meshes, dome, lights)


def _flood(stage: _Stage, layout: Layout) -> None:
    """Leaves only what water on the ground mirrors; everything else is black.

    That is the sky, lamps, and things in their own colours. As the water is a little rough, lights
    are drawn out towards the camera. They are small, so rays are to be sent to them, too.
    """
    # A black mirror, as no rays are sent from it.
    black = mi.load_dict({"type": "conductor", "specular_reflectance": _uniform((0.0,) * 3)})
    for part, mesh in zip(stage.meshes, layout.meshes, strict=True):
        part.set_bsdf(mi.load_dict(_water(mesh.material)) if _wet(mesh.material) else black)
        _weigh(part.emitter(), mesh.material.radiance + 1e-6)  # there may be no lamps at all
    for light in stage.lights:
        _weigh(light, 0.0)
    _weigh(stage.dome, 1.0)
    stage.scene.parameters_changed()


def _weigh(emitter: mi.Emitter, weight: float) -> None:
    """Changes how often rays are sent to a light; the scene must be notified."""
    values = mi.traverse(emitter)
    values["sampling_weight"] = weight
    values.update()


def _shine(part: mi.Mesh, radiance: np.ndarray) -> None:
    """Changes what a mesh shines to `[h w 3]`, of the size that it was made with, or `[1 1 3]`."""
    values = mi.traverse(part.emitter())
    if "radiance.data" in values:
        texture = values["radiance.data"]
        # Assignment would compare the numbers one by one.
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
        "diffuse_reflectance": _uniform((0.0,) * 3),
        "int_ior": 1.33,
        "distribution": "ggx",
        "alpha": max(1.0 - material.gloss, 0.001),
    }
    return {"type": "twosided", "bsdf": water}


def _pass(scene: mi.Scene, camera: Camera, integrator: dict, samples: int, seed: int) -> np.ndarray:
    """Radiance `[h w 3]` by an integrator, at the same places in the pixel for all of them."""
    sensor = _sensor(camera, {"type": "ldsampler", "sample_count": samples})
    made = mi.load_dict(integrator)
    return np.array(mi.render(scene, sensor=sensor, integrator=made, seed=seed))


def _around(layout: Layout, sun: dict | None, sky: dict) -> float:
    """Radiance of a white surface under the mean of the light, shadows taken into account."""
    if layout.sky is None:
        return float(np.mean(layout.ambient)) + 0.01
    upper = np.array(sky["bitmap"])
    light = upper[: len(upper) // 2].mean()
    if sun is not None:
        light += 0.5 * np.mean(sun["irradiance"]["value"]) / np.pi
    return 0.45 * float(light)


def _indoors(layout: Layout, hits: Hits, sky: dict, samples: int, seed: int) -> np.ndarray:
    """Radiance `[h w 3]` of things lit by panels, with glass and mirrors among them.

    Paths of many bounces; their noise is smoothed within opaque surfaces.
    """
    camera = layout.camera
    surfaces = [_mesh(mesh, _bsdf(mesh.material)) for mesh in layout.meshes]
    through = _see_through(layout, hits)
    bounces = 12 if through.any() else 5
    lamps = [_spot(lamp, camera) for lamp in layout.lamps]
    scene = _scene([*surfaces, sky, *lamps, *map(_panel, layout.panels)])
    light = _traced(scene, camera, samples, bounces, seed)
    white = _shining(layout, [_texture(mesh.material.texture) for mesh in layout.meshes], 1.0)
    colours = _traced(white, camera, 2 * samples, 1, seed)
    (radiance,) = _smoothed([(light, True)], colours, hits, camera)
    if through.any():
        radiance[through] = _in_detail(scene, camera, through, 8 * samples, bounces, seed)
    return radiance


def _glow(layout: Layout, samples: int, seed: int) -> np.ndarray:
    """Radiance `[h w 3]` of what shines by itself, everything else being black."""
    if all(mesh.material.emission is None for mesh in layout.meshes):
        return np.zeros((*layout.camera.size, 3), np.float32)
    scene = _shining(layout, [_light(_emitted(mesh.material)) for mesh in layout.meshes], 0.0)
    return _pass(scene, layout.camera, {"type": "path", "max_depth": 1}, samples, seed)


def first_hits(layout: Layout) -> Hits:
    """Depth, normal and surface at each pixel's centre."""
    shapes = [*layout.meshes, *map(_panel_mesh, layout.panels)]
    whole = _joined(shapes)
    scene = _scene([_mesh(whole, None)])
    camera = layout.camera
    rays = camera.rays().reshape(-1, 3)
    origin = mi.Point3f(camera.position.tolist())
    found = [scene.ray_intersect_preliminary(mi.Ray3f(origin, ray)) for ray in rays.tolist()]
    valid = np.array([hit.is_valid() for hit in found])
    depth = np.where(valid, [hit.t for hit in found], 0.0)
    face = np.where(valid, [hit.prim_index for hit in found], -1)
    corners = np.stack([[hit.prim_uv.x for hit in found], [hit.prim_uv.y for hit in found]], axis=1)
    corners = np.where(valid[:, None], corners, 0.0)
    last = np.cumsum([len(mesh.faces) for mesh in shapes])
    surface = np.where(face < 0, -1, np.searchsorted(last, face, side="right"))
    normal = np.where(face[:, None] < 0, 0.0, _normals(whole, shapes, face, surface, corners))

    behind = depth.copy()
    clear = np.array([mesh.material.kind in ("glass", "thin_glass") for mesh in shapes] + [False])
    for pixel in np.nonzero(clear[surface])[0]:
        number, reach, direction = surface[pixel], depth[pixel], rays[pixel]
        while clear[number]:
            start = camera.position + reach * (1 + 1e-5) * direction
            hit = scene.ray_intersect_preliminary(mi.Ray3f(start.tolist(), direction.tolist()))
            if not hit.is_valid():
                reach = 0.0
                break
            reach = reach * (1 + 1e-5) + hit.t
            number = np.searchsorted(last, hit.prim_index, side="right")
        behind[pixel] = reach
    size = camera.size
    return Hits(
        depth.reshape(size),
        normal.reshape(*size, 3),
        surface.reshape(size),
        behind.reshape(size),
        scene,
    )


def _joined(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of all faces, in order: far quicker to load than many."""
    offsets = np.cumsum([0, *[len(mesh.vertices) for mesh in meshes[:-1]]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([m.faces + offset for m, offset in zip(meshes, offsets, strict=True)]),
        np.concatenate([mesh.uvs for mesh in meshes]),
        meshes[0].material,
    )


def _normals(
    whole: Mesh,
    meshes: Sequence[Mesh],
    face: np.ndarray,
    surface: np.ndarray,
    corners: np.ndarray,
) -> np.ndarray:
    """Unit normals `[n 3]` on faces `[n]`: of the face, or its corners' where shaded as smooth.

    `corners` `[n 2]` are the shares of the second and the third corner.
    """
    a, b, c = np.moveaxis(whole.vertices[whole.faces[face]], 1, 0)
    normal = np.cross(b - a, c - a)
    smooth = np.array([mesh.normals is not None for mesh in meshes] + [False])[surface]
    given = np.concatenate(
        [np.zeros_like(m.vertices) if m.normals is None else m.normals for m in meshes]
    )
    weights = np.concatenate([1 - corners.sum(axis=1, keepdims=True), corners], axis=1)
    bent = (given[whole.faces[face]] * weights[..., None]).sum(axis=1)
    normal = np.where(smooth[:, None], bent, normal)
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


def _see_through(layout: Layout, hits: Hits) -> np.ndarray:
    """Bool `[h w]`: pixels that show glass or a mirror, if only in a corner."""
    kinds = [mesh.material.kind != "opaque" for mesh in layout.meshes]
    middle = np.array([*kinds, *[False] * len(layout.panels), False])[hits.surface]
    either = middle.copy()
    for one, other in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        either[one] |= middle[other]
        either[:, one] |= middle[:, other]
    return either


def _scene(parts: Sequence[dict | mi.Object]) -> mi.Scene:
    return mi.load_dict({"type": "scene"} | {f"part{i:05d}": part for i, part in enumerate(parts)})


def _traced(
    scene: mi.Scene,
    camera: Camera,
    samples: int,
    bounces: int,
    seed: int,
    crop: tuple | None = None,
) -> np.ndarray:
    path = mi.load_dict({"type": "path", "max_depth": bounces, "rr_depth": 4})
    sampler = {"type": "independent", "sample_count": samples}
    sensor = _sensor(camera, sampler, crop)
    return np.array(mi.render(scene, sensor=sensor, integrator=path, seed=seed))


TILE = 12  # pixels


def _in_detail(
    scene: mi.Scene, camera: Camera, where: np.ndarray, samples: int, bounces: int, seed: int
) -> np.ndarray:
    """Radiance `[n 3]` of the pixels `where`, rendered in small windows that hold them."""
    radiance = np.zeros((*where.shape, 3), np.float32)
    for top in range(0, where.shape[0], TILE):
        for left in range(0, where.shape[1], TILE):
            rows, columns = np.nonzero(where[top : top + TILE, left : left + TILE])
            if len(rows) == 0:
                continue
            seed += 1  # the same noise in each would show
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            down, right = top + rows.min(), left + columns.min()
            part = _traced(scene, camera, samples, bounces, seed, (down, right, height, width))
            radiance[down : down + height, right : right + width] = part
    return _despeckled(radiance, where)[where]


def _despeckled(radiance: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Each pixel held between the third lowest and the third highest of its eight neighbours.

    Few paths find light focused by glass: single pixels come out far too bright or too dark. Edges
    and highlights stay, unless they are but a pixel wide. Neighbours outside `where` do not count.
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


def _shining(layout: Layout, radiances: Sequence[dict], background: float) -> mi.Scene:
    """The meshes, each shining in its radiance, panels and sky in that of `background`."""
    even = _uniform((background,) * 3)
    parts = [_mesh(_panel_mesh(p), None, {"type": "area", "radiance": even}) for p in layout.panels]
    for mesh, radiance in zip(layout.meshes, radiances, strict=True):
        parts.append(_mesh(mesh, None, {"type": "area", "radiance": radiance}))
    return _scene([*parts, {"type": "constant", "radiance": even}])


def _transmittance(camera: Camera, hits: Hits, extinction: float) -> Float[np.ndarray, "h w"]:
    """Share of light that gets through air of `extinction` (1/m): exp(-extinction * distance).

    At the outlines of things, where a pixel's rays end at different distances, the mean of four.
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


def _cut(radiance: np.ndarray, albedo: np.ndarray, hits: Hits) -> np.ndarray:
    """Radiance `[h w 3]` whose light (radiance over albedo) is cut at its brightest hundredth.

    Next to a lamp light is unbounded. The pool of a headlight is so much brighter than the rest of
    the picture that the cut for even light would remove it.
    """
    light = radiance / (albedo + 0.02)
    if (surface := hits.depth > 0).any():
        light = np.minimum(light, np.quantile(light[surface], 0.99, axis=0))
    return light * (albedo + 0.02)


def _smoothed(
    radiances: Sequence[tuple[np.ndarray, bool]],
    albedo: np.ndarray,
    hits: Hits,
    camera: Camera,
    passes: int = 3,
) -> list[np.ndarray]:
    """Noisy soft lights averaged over neighbouring pixels of the same surface.

    The edge-avoiding a-trous filter (Dammertz et al., 2010): windows of 5x5 pixels, their steps
    doubling from pass to pass. What is averaged is radiance over albedo, so textures stay; the
    noiseless normals and positions show which neighbours lie in the same plane.

    Args:
        radiances: `[h w 3]`, each with whether it is light from all around, so that what is far
            brighter is noise.
        albedo: `[h w 3]`.
        hits: of the layout; where there is none, the sky, radiance is left alone.
        camera: the viewpoint.
        passes: 3 reach 14 pixels.
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
        light = (radiance / (albedo + 0.02)).astype(np.float32)
        if even:  # fireflies (bright clouds, mirrored) would be smeared into blots
            light = np.minimum(light, 4 * np.median(light[surface], axis=0))
        lights.append(light)
    light = np.concatenate(lights, axis=-1)
    tolerance = 0.006 * hits.depth.astype(np.float32) + 0.02  # metres from the plane
    for step in 2 ** np.arange(passes):
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


def _sensor(
    camera: Camera, sampler: dict, crop: tuple[int, int, int, int] | None = None
) -> mi.Sensor:
    """The camera; `crop` is (top, left, height, width) of the part of the picture to render."""
    height, width = camera.size
    top, left, rows, columns = (0, 0, height, width) if crop is None else map(int, crop)
    right, down, forward = camera.orientation.T
    # Mitsuba's camera looks along +z with +x to the left and +y up.
    to_world = np.eye(4)
    to_world[:3, :3] = np.stack([-right, -down, forward], axis=1)
    to_world[:3, 3] = camera.position
    return mi.load_dict(
        {
            "type": "perspective",
            "fov": float(np.degrees(2 * np.arctan(width / (2 * camera.intrinsics[0, 0])))),
            "fov_axis": "x",
            "near_clip": 0.05,
            "far_clip": 5000.0,
            "to_world": mi.ScalarTransform4f(to_world),
            "film": {
                "type": "hdrfilm",
                "width": width,
                "height": height,
                "crop_offset_x": left,
                "crop_offset_y": top,
                "crop_width": columns,
                "crop_height": rows,
                "pixel_format": "rgb",
                "component_format": "float32",
                "rfilter": {"type": "box"},
            },
            "sampler": sampler,
        }
    )


def _uniform(colour: Sequence[float]) -> dict:
    return {"type": "rgb", "value": [float(value) for value in colour]}


def _constant(radiance: Sequence[float]) -> dict:
    return {"type": "constant", "radiance": _uniform(radiance)}


def _spot(lamp: Lamp, camera: Camera) -> dict:
    direction = np.asarray(lamp.direction, float)
    up = [1.0, 0.0, 0.0] if abs(direction[2]) > 0.9 * np.linalg.norm(direction) else [0.0, 0.0, 1.0]
    target = np.asarray(lamp.position) + direction
    # Paths choose among lamps; those that matter most, near the middle ground, are chosen more
    # often.
    distance = np.asarray(lamp.position) - camera.position - 12.0 * camera.orientation[:, 2]
    return {
        "type": "spot",
        "to_world": mi.ScalarTransform4f().look_at(list(lamp.position), target.tolist(), up),
        "intensity": _uniform(lamp.intensity),
        "cutoff_angle": float(np.degrees(lamp.cutoff)),
        "beam_width": float(np.degrees(lamp.beam)),
        "sampling_weight": float(np.mean(lamp.intensity) / (100.0 + distance @ distance)),
    }


def _panel_mesh(panel: Panel) -> Mesh:
    return quad(panel.corners, materials.plain("panel", (1.0, 1.0, 1.0)))


def _panel(panel: Panel) -> mi.Mesh:
    shine = {"type": "area", "radiance": _uniform(panel.radiance)}
    return _mesh(_panel_mesh(panel), {"type": "diffuse"}, shine)


def _airlight(layout: Layout, sky: dict) -> np.ndarray:
    """Radiance `[3]` of endless air: that of the sky at the horizon (Koschmieder, 1924)."""
    if layout.sky is None:
        return np.asarray(layout.ambient)
    globe = np.array(sky["bitmap"])
    rows = len(globe) // 2
    return globe[rows - max(rows // 6, 1) : rows].mean(axis=(0, 1))


def _lights(sky: Sky) -> tuple[dict | None, dict]:
    """Sun and sky as lights of Mitsuba.

    The sun is a directional light, or None if clouds hide it; sky, clouds and lit ground are an
    environment map.

    Sun and clear sky are Mitsuba's own `sunsky` (Hosek and Wilkie's model). Baked into a map they
    render several times faster, and clouds can be painted.
    """
    to_sun = sky.to_sun
    interaction = mi.SurfaceInteraction3f()

    def radiance(emitter: mi.Emitter, direction: np.ndarray) -> np.ndarray:
        interaction.wi = (-direction).tolist()
        return np.array(emitter.eval(interaction))

    clear = {"type": "sunsky", "sun_direction": to_sun.tolist(), "turbidity": sky.turbidity}
    clear_sky, with_sun = mi.load_dict(clear | {"sun_scale": 0.0}), mi.load_dict(clear)
    dome = _upsampled(
        np.array([[radiance(clear_sky, d) for d in row] for row in _directions(16, 64)])
    )
    disc = 2 * np.pi * (1 - np.cos(np.radians(0.5358 / 2)))  # sr; the aperture of `sunsky`
    sun = (radiance(with_sun, to_sun) - radiance(clear_sky, to_sun)) * disc

    directions = _directions(*dome.shape[:2])
    cover, thickness = _clouds(sky, directions)
    sun = sun * (1 - np.clip((sky.cloudiness - 0.45) / 0.3, 0, 1))
    mean_sky = dome.mean(axis=(0, 1))
    grey = (
        mean_sky.mean() * np.array([0.98, 1.0, 1.04]) * (0.35 + 0.65 * mean_sky / mean_sky.mean())
    )
    lit = grey * 0.9 + 0.09 * sun
    cloud = lit * (1.0 - 0.45 * thickness[..., None])
    dome = dome * (1 - cover[..., None]) + cloud * cover[..., None]
    weight = directions[..., 2:] / directions[..., 2].sum()
    ground = 0.2 * (np.pi * (dome * weight).sum(axis=(0, 1)) + sun * to_sun[2]) / np.pi
    globe = np.concatenate([dome, np.broadcast_to(ground, dome.shape)]).astype(np.float32)
    direct = {
        "type": "directional",
        "direction": (-to_sun).tolist(),
        "irradiance": _uniform(sun),
    }
    return (
        direct if sun.any() else None,
        {
            "type": "envmap",
            "bitmap": mi.Bitmap(globe),
            "to_world": mi.ScalarTransform4f().rotate([1, 0, 0], 90),
        },
    )


def _upsampled(coarse: np.ndarray, factor: int = 8) -> np.ndarray:
    """A smooth map `[h w 3]` of the upper half, `factor` times finer in both ways."""
    height, width = coarse.shape[:2]
    row = np.clip((np.arange(height * factor) + 0.5) / factor - 0.5, 0, height - 1)
    column = (np.arange(width * factor) + 0.5) / factor - 0.5
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    down, right = (row - top)[:, None, None], (column - left)[None, :, None]
    below, beside = np.minimum(top + 1, height - 1), (left + 1) % width
    upper = coarse[top][:, left] * (1 - right) + coarse[top][:, beside] * right
    lower = coarse[below][:, left] * (1 - right) + coarse[below][:, beside] * right
    return upper * (1 - down) + lower * down


def _directions(height: int, width: int) -> np.ndarray:
    """`[h w 3]` unit directions of a map of the upper half: zenith first, azimuth 0 ahead."""
    polar = (np.arange(height) + 0.5) / height * np.pi / 2
    azimuth = (np.arange(width) + 0.5) / width * 2 * np.pi
    polar, azimuth = np.meshgrid(polar, azimuth, indexing="ij")
    across = np.sin(polar)
    return np.stack([across * np.sin(azimuth), across * np.cos(azimuth), np.cos(polar)], axis=-1)


def _clouds(sky: Sky, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cover and thickness of the clouds, `[h w]` in [0, 1], on a flat layer seen in perspective."""
    size = 512
    rng = np.random.default_rng(sky.cloud_seed)
    field = materials.noise(rng, size, size, slope=1.9, finest=0.25)
    layer = directions[..., :2] / (directions[..., 2:] + 0.12) * 45
    column, row = (layer[..., i].astype(int) % size for i in range(2))
    level = np.quantile(field, 1 - sky.cloudiness)
    height = field[row, column] - level
    return np.clip(height / 0.5, 0, 1) ** 0.7, np.clip(height / 1.6, 0, 1)


def _mesh(mesh: Mesh, bsdf: dict | None, emitter: dict | None = None) -> mi.Mesh:
    properties = mi.Properties()
    if bsdf is not None:
        properties["mesh_bsdf"] = mi.load_dict(bsdf)
    if emitter is not None:
        properties["mesh_emitter"] = mi.load_dict(emitter)
    properties["face_normals"] = mesh.normals is None
    shape = mi.Mesh(
        mesh.material.role,
        len(mesh.vertices),
        len(mesh.faces),
        props=properties,
        has_vertex_normals=mesh.normals is not None,
        has_vertex_texcoords=True,
    )
    given = {
        "vertex_positions": mesh.vertices,
        "faces": mesh.faces,
        "vertex_texcoords": mesh.uvs * np.array([1.0, -1.0]),  # Mitsuba's v runs down the picture
    }
    if mesh.normals is not None:
        given["vertex_normals"] = mesh.normals
    values = mi.traverse(shape)
    for name, numbers in given.items():
        values[name].numpy()[:] = numbers.ravel()  # assignment would compare them one by one
    shape.parameters_changed(list(given))
    return shape


def _linear(texture: np.ndarray) -> np.ndarray:
    """Linear RGB float32 of uint8 sRGB."""
    return _LINEAR[texture]


_LINEAR = np.array(  # of every byte
    mi.Bitmap(np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)).convert(
        mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.Float32, False
    )
)[0, :, 0]


def _texture(texture: np.ndarray) -> dict:
    """Reflectance from uint8 sRGB `[h w 3]`."""
    if (texture == texture[:1, :1]).all():  # a single number is faster to look up
        return _uniform(_linear(texture[:1, :1])[0, 0])
    return _bitmap(mi.Bitmap(texture), raw=False)


def _radiance(material: Material, around: float) -> np.ndarray:
    """Light from a surface `[h w 3]`: its colour times `around`, plus its own emission."""
    linear = np.float32(around) * _linear(material.texture)
    return linear if material.emission is None else linear + _emitted(material)


def _emitted(material: Material) -> np.ndarray:
    """Light that a surface emits itself, `[h w 3]`."""
    if material.emission is None:
        return np.zeros((1, 1, 3), np.float32)
    return np.float32(material.radiance) * _linear(material.emission)


def _light(linear: np.ndarray) -> dict:
    if (linear == linear[:1, :1]).all():
        return _uniform(linear[0, 0])
    return _bitmap(mi.Bitmap(linear), raw=True)


def _bitmap(bitmap: mi.Bitmap, *, raw: bool) -> dict:
    return {
        "type": "bitmap",
        "bitmap": bitmap,
        "raw": raw,
        "filter_type": "bilinear",
        "wrap_mode": "repeat",
    }


GLASS = 1.5  # refractive index


def _bsdf(material: Material) -> dict:
    if material.kind == "glass":
        tint = _texture(material.texture)
        return {"type": "dielectric", "int_ior": GLASS, "specular_transmittance": tint}
    if material.kind == "thin_glass":
        tint = _texture(material.texture)
        return {"type": "thindielectric", "int_ior": GLASS, "specular_transmittance": tint}
    if material.kind == "mirror":
        mirror = {"type": "conductor", "specular_reflectance": _texture(material.texture)}
        return {"type": "twosided", "bsdf": mirror}
    if material.gloss == 0:
        surface = {"type": "diffuse", "reflectance": _texture(material.texture)}
    else:
        surface = {
            "type": "principled",
            "base_color": _texture(material.texture),
            "roughness": 0.08 + 0.6 * (1 - material.gloss),
            "specular": 0.5,
        }
    return {"type": "twosided", "bsdf": surface}
