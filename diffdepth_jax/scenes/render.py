"""Pictures and exact depth of a layout, by Mitsuba 3 (variant `scalar_rgb`).

The only file that imports mitsuba; it comes with the optional extra `render`.
"""

import drjit
import mitsuba as mi
import numpy as np
from jaxtyping import Float, UInt8

from diffdepth_jax.scenes import materials
from diffdepth_jax.scenes.layouts import Camera, Layout, Sky
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh

mi.set_variant("scalar_rgb")  # the llvm_* variants abort where the system's LLVM is old
drjit.set_thread_count(1)  # the noise depends on it; frames are rendered side by side instead


SAMPLES = 16  # light paths a pixel


def render(
    layout: Layout, *, samples: int = SAMPLES, seed: int = 0
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """Picture and depth of a layout.

    Sunlight and skylight are rendered apart: the sun's shadows are sharp and free of noise, while
    the soft skylight is noisy and is smoothed within surfaces before both are added.

    Args:
        layout: what to render.
        samples: light paths a pixel, for each of the two lights.
        seed: of the light paths; equal seeds give equal bytes.

    Returns:
        image uint8 `[h w 3]`, and depth float64 `[h w]`: planar depth (along the camera's axis) of
        the first surface on the ray through the pixel's centre, metres; 0 for the sky.
    """
    camera = layout.camera
    sun, sky = _lights(layout.sky)
    things = {f"mesh{i}": _mesh(mesh, _bsdf(mesh.material)) for i, mesh in enumerate(layout.meshes)}
    # Surfaces that shine in their own colour, for the colours alone.
    shining = {
        f"mesh{i}": _mesh(
            mesh, {"type": "diffuse"}, {"type": "area", "radiance": _texture(mesh.material)}
        )
        for i, mesh in enumerate(layout.meshes)
    }
    in_sun = mi.load_dict({"type": "scene", "sun": sun} | things)
    in_sky = mi.load_dict({"type": "scene", "sky": sky} | things)
    in_white = mi.load_dict({"type": "scene", "sky": {"type": "constant"}} | shining)
    sensor = _sensor(camera, samples)

    def trace(scene: mi.Scene, max_depth: int) -> np.ndarray:
        path = mi.load_dict({"type": "path", "max_depth": max_depth})
        return np.array(mi.render(scene, sensor=sensor, integrator=path, seed=seed))

    depth, normal = first_hits(in_sky, camera)
    skylight = _smoothed(trace(in_sky, 3), trace(in_white, 1), normal, depth)
    return _develop(trace(in_sun, 2) + skylight), depth


def first_hits(
    scene: mi.Scene, camera: Camera
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w 3"]]:
    """What the ray through each pixel's centre meets first.

    Returns:
        depth `[h w]` metres along the camera's axis, 0 for none; and the surface's unit normal
        `[h w 3]` in the world, 0 for none.
    """
    height, width = camera.size
    depth, normal = np.zeros((height, width)), np.zeros((height, width, 3))
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([column, row, np.ones_like(row)], axis=-1).reshape(-1, 3)
    # Directions of unit depth: the distance along them is planar depth, whatever the angle.
    directions = pixels @ np.linalg.inv(camera.intrinsics).T @ camera.orientation.T
    origin = camera.position.tolist()
    for index, direction in enumerate(directions.tolist()):
        hit = scene.ray_intersect(mi.Ray3f(origin, direction))
        if hit.is_valid():
            depth.flat[index] = hit.t
            normal.reshape(-1, 3)[index] = hit.sh_frame.n
    return depth, normal


def _smoothed(
    radiance: np.ndarray, albedo: np.ndarray, normal: np.ndarray, depth: np.ndarray, reach: int = 4
) -> np.ndarray:
    """Noisy soft light averaged over neighbouring pixels of the same surface.

    A cross-bilateral filter: what is averaged is light over albedo, so textures stay; the noiseless
    normals and depths tell which neighbours lie on the same surface.

    Args:
        radiance, albedo, normal: `[h w 3]`.
        depth: `[h w]` metres, 0 for the sky, which is left alone.
        reach: half the window's width in pixels.
    """
    surface = depth > 0
    if not surface.any():
        return radiance
    light = radiance / (albedo + 0.02)
    # Fireflies (bright clouds, mirrored) would be smeared into blots.
    light = np.minimum(light, 4 * np.median(light[surface], axis=0))
    total, weights = np.zeros_like(light), np.zeros(depth.shape)
    height, width = depth.shape
    window = ((reach, reach), (reach, reach), (0, 0))
    padded = np.pad(np.concatenate([light, normal, depth[..., None]], axis=-1), window)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            other = padded[reach + down :, reach + right :][:height, :width]
            weight = np.exp(-(down**2 + right**2) / (0.6 * reach) ** 2) * (other[..., 6] > 0)
            weight *= np.clip((normal * other[..., 3:6]).sum(axis=-1), 0, 1) ** 16
            weight *= np.exp(-np.abs(other[..., 6] - depth) / (0.03 * depth + 0.05))
            total += weight[..., None] * other[..., :3]
            weights += weight
    mean = total / np.maximum(weights, 1e-6)[..., None]
    return np.where(surface[..., None], mean * (albedo + 0.02), radiance)


def _sensor(camera: Camera, samples: int) -> mi.Sensor:
    height, width = camera.size
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
                "pixel_format": "rgb",
                "component_format": "float32",
                "rfilter": {"type": "box"},
            },
            "sampler": {"type": "independent", "sample_count": samples},
        }
    )


def _lights(sky: Sky) -> tuple[dict, dict]:
    """The sun as a directional light, and sky, clouds and lit ground as an environment map.

    Sun and clear sky are Mitsuba's own `sunsky` (Hosek and Wilkie's model). Baked into a map they
    render several times faster, and clouds can be painted.
    """
    level = np.cos(sky.sun_elevation)
    to_sun = np.array(
        [
            level * np.sin(sky.sun_azimuth),
            level * np.cos(sky.sun_azimuth),
            np.sin(sky.sun_elevation),
        ]
    )
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
    sun = sun * (1 - 0.97 * np.clip((sky.cloudiness - 0.45) / 0.3, 0, 1))
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
    return (
        {
            "type": "directional",
            "direction": (-to_sun).tolist(),
            "irradiance": {"type": "rgb", "value": sun.tolist()},
        },
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


def _mesh(mesh: Mesh, bsdf: dict, emitter: dict | None = None) -> mi.Mesh:
    properties = mi.Properties()
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
    values = mi.traverse(shape)
    values["vertex_positions"] = np.ascontiguousarray(mesh.vertices, np.float32).ravel()
    values["faces"] = np.ascontiguousarray(mesh.faces, np.uint32).ravel()
    downwards = mesh.uvs * np.array([1.0, -1.0])  # Mitsuba's v runs down the picture
    values["vertex_texcoords"] = np.ascontiguousarray(downwards, np.float32).ravel()
    if mesh.normals is not None:
        values["vertex_normals"] = np.ascontiguousarray(mesh.normals, np.float32).ravel()
    values.update()
    return shape


def _texture(material: Material) -> dict:
    return {
        "type": "bitmap",
        "bitmap": mi.Bitmap(material.texture),
        "filter_type": "bilinear",
        "wrap_mode": "repeat",
    }


def _bsdf(material: Material) -> dict:
    if material.gloss == 0:
        surface = {"type": "diffuse", "reflectance": _texture(material)}
    else:
        surface = {
            "type": "principled",
            "base_color": _texture(material),
            "roughness": 0.08 + 0.6 * (1 - material.gloss),
            "specular": 0.5,
        }
    return {"type": "twosided", "bsdf": surface}


def _develop(radiance: np.ndarray) -> np.ndarray:
    """Exposure, white balance, a soft shoulder for highlights, and sRGB bytes."""
    luminance = radiance @ np.array([0.2126, 0.7152, 0.0722])
    exposed = radiance * (0.18 / np.exp(np.mean(np.log(luminance + 1e-4))))
    # Half-way to a grey mean, as cameras do: shade under a blue sky would look like dusk.
    mean = np.minimum(exposed, 1.0).mean(axis=(0, 1)) + 1e-6
    exposed = exposed * np.sqrt(mean.mean() / mean)
    toned = exposed * (1 + exposed / 9.0) / (1 + exposed)
    srgb = np.where(
        toned <= 0.0031308, 12.92 * toned, 1.055 * toned.clip(1e-8) ** (1 / 2.4) - 0.055
    )
    return (srgb.clip(0, 1) * 255 + 0.5).astype(np.uint8)
