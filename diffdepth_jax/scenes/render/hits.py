"""What the ray through each pixel hits: exact depth, normals and surfaces."""

from collections.abc import Sequence
from typing import NamedTuple

import mitsuba as mi
import mitsuba.scalar_rgb as rgb
import numpy as np
from jaxtyping import Float, Int

from diffdepth_jax.scenes.layouts import Layout
from diffdepth_jax.scenes.render import parts
from diffdepth_jax.scenes.shapes import Mesh


class Hits(NamedTuple):
    """What the ray through each pixel centre hits.

    Attributes:
        depth: `[h w]` planar depth (along the camera's axis) of the first surface of any kind,
            metres; 0 for none.
        normal: `[h w 3]` its unit normal in world coordinates, 0 for none.
        surface: `[h w]` its index in the layout's meshes, with panels counted after them; -1 for
            none.
        behind: `[h w]` planar depth of the first surface that is not glass; 0 for none.
        scene: the scene, for tracing more rays.
    """

    depth: Float[np.ndarray, "h w"]
    normal: Float[np.ndarray, "h w 3"]
    surface: Int[np.ndarray, "h w"]
    behind: Float[np.ndarray, "h w"]
    scene: rgb.Scene


@parts.scalar_on_one_thread()
def first_hits(layout: Layout) -> Hits:
    """Depth, normal and surface at each pixel centre."""
    shapes = [*layout.meshes, *map(parts.panel_mesh, layout.panels)]
    whole = _joined(shapes)
    scene = parts.scene([parts.mesh(whole, None)])
    camera = layout.camera
    rays = camera.rays().reshape(-1, 3)
    origin = mi.Point3f(camera.position.tolist())
    directions = map(mi.Vector3f, rays.tolist())
    found = [scene.ray_intersect_preliminary(mi.Ray3f(origin, each)) for each in directions]
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
    """One mesh of all faces, in order, which loads much faster than many."""
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
    """Unit normals `[n 3]` on faces `[n]`: the face's, or interpolated if smooth-shaded.

    `corners` `[n 2]` are the weights of the second and third corner.
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
