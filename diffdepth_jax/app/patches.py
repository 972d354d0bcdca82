"""Depth and image as a coloured 3-D scene in glTF.

Most viewers draw points one screen pixel wide, which leaves holes between those of a small image.
So every image pixel becomes a patch: as large as the pixel, and tilted like the surface around it.
"""

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

MOST_PATCHES = 80_000  # still smooth in a browser without a graphics card
_FARTHEST = 97  # percentile of depth; the sky beyond it would make the rest tiny
_CORNERS = np.array([(-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)])  # row, column
_TRIANGLES = np.array([0, 1, 2, 0, 2, 3])


@dataclass(frozen=True)
class Scene:
    """Triangles with coloured vertices, in glTF's axes: x right, y up, the camera looks along -z.

    Attributes:
        vertices: in the unit of the depth, relative to the camera.
        colours: sRGB.
        triangles: three indices of vertices each.
    """

    vertices: Float[np.ndarray, "n 3"]
    colours: UInt8[np.ndarray, "n 3"]
    triangles: Int[np.ndarray, "m 3"]

    @property
    def distance(self) -> float:
        """From the camera to the middle of the box around the scene; 1 if the scene is empty."""
        if not len(self.vertices):
            return 1.0
        middle = (self.vertices.min(axis=0) + self.vertices.max(axis=0)) / 2
        return float(np.linalg.norm(middle))


def build(
    image: UInt8[np.ndarray, "h w 3"],
    depth: Float[np.ndarray, "h w"],
    intrinsics: Float[np.ndarray, "3 3"],
) -> Scene:
    """A patch for every pixel that has a depth, or for every n-th one of a large image.

    Args:
        image: RGB.
        depth: along the camera's axis; pixels that are not finite or not above 0, and the farthest
            3%, are left out.
        intrinsics: of the image, in pixels.
    """
    height, width = depth.shape
    stride = int(np.ceil(np.sqrt(height * width / MOST_PATCHES)))
    rows, columns = np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride]
    sampled = depth[rows, columns].astype(np.float64)
    known = np.isfinite(sampled) & (sampled > 0)
    if known.any():
        known &= sampled <= np.percentile(sampled[known], _FARTHEST)
    down, right = (_slope(np.where(known, sampled, np.nan), axis) for axis in (0, 1))
    focal, centre = np.diag(intrinsics)[:2], intrinsics[:2, 2]
    corners = []
    for row, column in _CORNERS:
        distance = (sampled + row * down + column * right)[known]
        x = (columns[known] + column * stride - centre[0]) / focal[0]
        y = (rows[known] + row * stride - centre[1]) / focal[1]
        corners.append(np.stack([x, -y, -np.ones_like(x)], axis=-1) * distance[:, None])
    vertices = np.stack(corners, axis=1).reshape(-1, 3)
    colours = np.repeat(image[rows, columns][known], len(_CORNERS), axis=0)
    first = len(_CORNERS) * np.arange(known.sum())[:, None]
    return Scene(vertices.astype(np.float32), colours, (first + _TRIANGLES).reshape(-1, 3))


def _slope(depth: Float[np.ndarray, "h w"], axis: int) -> Float[np.ndarray, "h w"]:
    """Change of depth across a pixel: the harmonic mean of the changes to both neighbours.

    It is 0 where they disagree in sign, and near the smaller where they differ much, so that edges
    stay sharp (the limiter of van Leer 1974). An unknown one counts as the other.
    """
    change = np.diff(depth, axis=axis)
    edge = [(0, 0), (0, 0)]
    edge[axis] = (1, 1)
    padded = np.pad(change, edge, constant_values=np.nan)
    before, after = (np.delete(padded, index, axis=axis) for index in (-1, 0))
    before = np.where(np.isnan(before), after, before)
    after = np.where(np.isnan(after), before, after)
    agree = before * after > 0
    return np.where(agree, 2 * before * after / np.where(agree, before + after, 1), 0.0)


def glb(scene: Scene) -> bytes:
    """The scene as binary glTF 2.0 (Khronos specification, sections 3 and 4.4), unlit."""
    linear = _linear(scene.colours)
    alpha = np.full((len(linear), 1), 65535)  # Padding: rows are multiples of four bytes.
    parts = [
        (scene.vertices.astype("<f4"), 5126, "VEC3"),
        (np.concatenate([np.rint(65535 * linear), alpha], axis=1).astype("<u2"), 5123, "VEC4"),
        (scene.triangles.reshape(-1).astype("<u4"), 5125, "SCALAR"),
    ]
    views, accessors, offset = [], [], 0
    for index, (array, kind, shape) in enumerate(parts):
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes})
        accessor: dict[str, Any] = {"bufferView": index, "componentType": kind, "type": shape}
        accessors.append({**accessor, "count": len(array), "normalized": shape == "VEC4"})
        offset += array.nbytes
    if len(scene.vertices):
        accessors[0]["min"] = scene.vertices.min(axis=0).tolist()
        accessors[0]["max"] = scene.vertices.max(axis=0).tolist()
    primitive = {"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}
    unlit = "KHR_materials_unlit"
    description = {
        "asset": {"version": "2.0"},
        "extensionsUsed": [unlit],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [{"doubleSided": True, "extensions": {unlit: {}}}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }
    text = json.dumps(description).encode()
    text += b" " * (-len(text) % 4)
    data = b"".join(array.tobytes() for array, *_ in parts)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _linear(colours: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """sRGB to linear light, 0 to 1 (IEC 61966-2-1)."""
    encoded = colours / 255.0
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
