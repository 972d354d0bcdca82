"""Meshes, materials, lamps and cameras for Mitsuba, and its set-up."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import drjit
import mitsuba as mi
import mitsuba.scalar_rgb as rgb
import numpy as np

from diffdepth_jax.scenes import materials
from diffdepth_jax.scenes.layouts import Camera, Lamp, Panel
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh, quad


@contextlib.contextmanager
def scalar_on_one_thread() -> Iterator[None]:
    """Uses Mitsuba's variant `scalar_rgb` on one thread; a decorator or context manager.

    Both settings are global in the process and are restored afterwards. If no variant was set
    before, this one stays, as Mitsuba cannot unset it.
    """
    variant, threads = mi.variant(), drjit.thread_count()
    mi.set_variant("scalar_rgb")  # the llvm_* variants abort if the system's LLVM is old
    drjit.set_thread_count(1)  # the noise depends on it; frames are rendered in parallel instead
    try:
        yield
    finally:
        drjit.set_thread_count(threads)
        if variant is not None:
            mi.set_variant(variant)


def scene(parts: Sequence[dict | mi.Object]) -> rgb.Scene:
    """A scene from plugins and objects."""
    return mi.load_dict({"type": "scene"} | {f"part{i:05d}": part for i, part in enumerate(parts)})


def sensor(
    camera: Camera, sampler: dict, crop: tuple[int, int, int, int] | None = None
) -> rgb.Sensor:
    """The camera; `crop` is (top, left, height, width) of the part of the image to render."""
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
            "to_world": mi.ScalarTransform4f(to_world.tolist()),
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


def spot(lamp: Lamp, camera: Camera) -> dict:
    """A lamp, sampled by paths according to its importance for the camera."""
    direction = np.asarray(lamp.direction, float)
    up = [1.0, 0.0, 0.0] if abs(direction[2]) > 0.9 * np.linalg.norm(direction) else [0.0, 0.0, 1.0]
    target = np.asarray(lamp.position) + direction
    # Paths sample lamps; those that matter most, near the middle ground, are sampled more often.
    distance = np.asarray(lamp.position) - camera.position - 12.0 * camera.orientation[:, 2]
    return {
        "type": "spot",
        "to_world": mi.ScalarTransform4f().look_at(list(lamp.position), target.tolist(), up),
        "intensity": uniform(lamp.intensity),
        "cutoff_angle": float(np.degrees(lamp.cutoff)),
        "beam_width": float(np.degrees(lamp.beam)),
        "sampling_weight": float(np.mean(lamp.intensity) / (100.0 + distance @ distance)),
    }


def panel_mesh(panel: Panel) -> Mesh:
    """The surface of a panel."""
    return quad(panel.corners, materials.plain("panel", (1.0, 1.0, 1.0)))


def panel(panel: Panel) -> rgb.Mesh:
    """A panel and its light."""
    shine = {"type": "area", "radiance": uniform(panel.radiance)}
    return mesh(panel_mesh(panel), {"type": "diffuse"}, shine)


def mesh(mesh: Mesh, bsdf: dict | None, emitter: dict | None = None) -> rgb.Mesh:
    """A mesh that scatters light with `bsdf` and emits that of `emitter`."""
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
        "vertex_texcoords": mesh.uvs * np.array([1.0, -1.0]),  # Mitsuba's v runs downwards
    }
    if mesh.normals is not None:
        given["vertex_normals"] = mesh.normals
    values = mi.traverse(shape)
    for name, numbers in given.items():
        values[name].numpy()[:] = numbers.ravel()  # assignment would compare them one by one
    shape.parameters_changed(list(given))
    return shape


def uniform(colour: Sequence[float]) -> dict:
    """One linear RGB colour everywhere."""
    return {"type": "rgb", "value": [float(value) for value in colour]}


def constant(radiance: Sequence[float]) -> dict:
    """Light with uniform linear RGB radiance from all directions."""
    return {"type": "constant", "radiance": uniform(radiance)}


def _linear(texture: np.ndarray) -> np.ndarray:
    """Converts uint8 sRGB to linear RGB float32."""
    return _linear_of_bytes()[texture]


@functools.cache
def _linear_of_bytes() -> np.ndarray:
    """`[256]` float32, from Mitsuba's own conversion."""
    every = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    to = mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.Float32, False
    return np.array(mi.Bitmap(every).convert(*to))[0, :, 0]


def texture(texture: np.ndarray) -> dict:
    """Reflectance from uint8 sRGB `[h w 3]`."""
    if (texture == texture[:1, :1]).all():  # a uniform value is faster to look up
        return uniform(_linear(texture[:1, :1])[0, 0])
    return _bitmap(mi.Bitmap(texture), raw=False)


def emitted(material: Material) -> np.ndarray:
    """Light emitted by a surface, `[h w 3]`."""
    if material.emission is None:
        return np.zeros((1, 1, 3), np.float32)
    return np.float32(material.radiance) * _linear(material.emission)


def radiance(material: Material, around: float) -> np.ndarray:
    """Light from a surface `[h w 3]`: its colour times `around`, plus its own emission."""
    linear = np.float32(around) * _linear(material.texture)
    return linear if material.emission is None else linear + emitted(material)


def light(linear: np.ndarray) -> dict:
    """Radiance from linear RGB float32 `[h w 3]`."""
    if (linear == linear[:1, :1]).all():
        return uniform(linear[0, 0])
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


def bsdf(material: Material) -> dict:
    """How a material scatters light."""
    if material.kind == "glass":
        tint = texture(material.texture)
        return {"type": "dielectric", "int_ior": GLASS, "specular_transmittance": tint}
    if material.kind == "thin_glass":
        tint = texture(material.texture)
        return {"type": "thindielectric", "int_ior": GLASS, "specular_transmittance": tint}
    if material.kind == "mirror":
        mirror = {"type": "conductor", "specular_reflectance": texture(material.texture)}
        return {"type": "twosided", "bsdf": mirror}
    if material.gloss == 0:
        surface: dict[str, Any] = {"type": "diffuse", "reflectance": texture(material.texture)}
    else:
        surface = {
            "type": "principled",
            "base_color": texture(material.texture),
            "roughness": 0.08 + 0.6 * (1 - material.gloss),
            "specular": 0.5,
        }
    return {"type": "twosided", "bsdf": surface}
