"""Triangle meshes of simple solids, which rendered scenes are built from.

World axes: x right, y forward, z up, metres. Faces are counter-clockwise seen from outside.
Texture coordinates are (u, v) in texture repeats, with v upwards.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from diffdepth_jax.scenes.materials import Material


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles of one material.

    Attributes:
        vertices: float `[n 3]`, metres.
        faces: int `[m 3]`, indices of vertices.
        uvs: float `[n 2]`, texture coordinates.
        material: what the surface looks like.
        normals: float `[n 3]` for smooth-shaded surfaces, None for flat facets.
    """

    vertices: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]
    uvs: Float[np.ndarray, "n 2"]
    material: Material
    normals: Float[np.ndarray, "n 3"] | None = None


def _grid_normals(points: np.ndarray) -> np.ndarray:
    """Unit normals `[r k 3]` of a surface given as closed rings of points."""
    # np.roll, np.gradient and np.cross are slow on small arrays.
    closed = np.concatenate([points[:, -1:], points, points[:, :1]], axis=1)
    around = closed[:, 2:] - closed[:, :-2]
    along = np.empty_like(points)
    along[0], along[-1] = points[1] - points[0], points[-1] - points[-2]
    along[1:-1] = (points[2:] - points[:-2]) / 2
    normals = np.empty_like(points)
    for axis, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        normals[..., axis] = around[..., i] * along[..., j] - around[..., j] * along[..., i]
    length = np.sqrt((normals**2).sum(axis=-1, keepdims=True))
    return normals / np.maximum(length, 1e-12)


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Float[np.ndarray, "3 3"]:
    """`[3 3]` rotation: roll about y (forward), then pitch about x (nose up), then yaw about z.

    Angles in radians; positive yaw turns left, positive pitch looks up, positive roll leans right.
    """
    cy, sy = np.cos(yaw), np.sin(yaw)
    cp, sp = np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    return about_z @ about_x @ about_y


def moved(
    meshes: Iterable[Mesh], position: ArrayLike, turn: np.ndarray | None = None
) -> list[Mesh]:
    """The meshes rotated about the origin by `turn` (`[3 3]`), then translated by `position`."""
    turn = np.eye(3) if turn is None else turn
    position = np.asarray(position, float)
    return [
        Mesh(
            mesh.vertices @ turn.T + position,
            mesh.faces,
            mesh.uvs,
            mesh.material,
            None if mesh.normals is None else mesh.normals @ turn.T,
        )
        for mesh in meshes
    ]


def merged(meshes: Iterable[Mesh]) -> list[Mesh]:
    """One mesh per material and shading, in order of first appearance."""
    groups: dict[tuple[int, bool], list[Mesh]] = {}
    for mesh in meshes:
        groups.setdefault((id(mesh.material), mesh.normals is None), []).append(mesh)
    result = []
    for (_, flat), group in groups.items():
        offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in group[:-1]])
        result.append(
            Mesh(
                vertices=np.concatenate([mesh.vertices for mesh in group]),
                faces=np.concatenate([m.faces + o for m, o in zip(group, offsets, strict=True)]),
                uvs=np.concatenate([mesh.uvs for mesh in group]),
                material=group[0].material,
                normals=None if flat else np.concatenate([mesh.normals for mesh in group]),
            )
        )
    return result


def quad(
    corners: ArrayLike,
    material: Material,
    uv: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
) -> Mesh:
    """A quadrilateral, counter-clockwise from its lower left; `uv` is (u0, v0, u1, v1)."""
    u0, v0, u1, v1 = uv
    return Mesh(
        vertices=np.asarray(corners, float),
        faces=np.array([[0, 1, 2], [0, 2, 3]]),
        uvs=np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]], float),
        material=material,
    )


# Faces of a box: outward axis, and the axes to the right and up as seen from outside.
_BOX_FACES = np.array(
    [
        ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
        ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
        ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
        ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
        ((0, 0, -1), (1, 0, 0), (0, -1, 0)),
    ],
    float,
)
_CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
_BOX_VERTICES = (
    _BOX_FACES[:, None, 0] + np.einsum("ca,fad->fcd", _CORNERS, _BOX_FACES[:, 1:])
).reshape(24, 3)
_BOX_UVS = np.tile((_CORNERS + 1) / 2, (6, 1, 1))
_BOX_TRIANGLES = (4 * np.arange(6)[:, None, None] + np.array([[0, 1, 2], [0, 2, 3]])[None]).reshape(
    12, 3
)


def box(
    size: ArrayLike,
    center: ArrayLike,
    material: Material,
    texture_size: float | None = None,
) -> Mesh:
    """An axis-aligned box; `texture_size` in metres per repeat, None for one repeat per face."""
    size = np.asarray(size, float)
    uvs = _BOX_UVS
    if texture_size is not None:
        uvs = uvs * (np.abs(_BOX_FACES[:, 1:]) @ size / texture_size)[:, None, :]
    return Mesh(
        _BOX_VERTICES * (size / 2) + np.asarray(center, float),
        _BOX_TRIANGLES,
        uvs.reshape(24, 2),
        material,
    )


@functools.cache
def _skin(count: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces and texture coordinates over `count` rings of `points` + 1 points (last = first)."""
    v, u = np.meshgrid(np.linspace(0, 1, count), np.linspace(0, 1, points + 1), indexing="ij")
    first = (np.arange(count - 1)[:, None] * (points + 1) + np.arange(points)[None, :]).reshape(-1)
    above = first + points + 1
    faces = np.concatenate(
        [np.stack([first, first + 1, above + 1], 1), np.stack([first, above + 1, above], 1)]
    )
    return faces, np.stack([u, v], axis=-1).reshape(-1, 2)


def _closed(rings: np.ndarray) -> np.ndarray:
    """Rings `[r k 3]` with the first point repeated at the end, flattened to `[r * (k + 1) 3]`."""
    return np.concatenate([rings, rings[:, :1]], axis=1).reshape(-1, 3)


def loft(rings: Float[np.ndarray, "r k 3"], material: Material, *, smooth: bool = False) -> Mesh:
    """A skin over closed rings of points `[r k 3]`, with ends closed by fans.

    Rings run counter-clockwise seen against the lofting direction; u runs once around, v once
    along.
    """
    return _lofted(rings, material, _grid_normals(rings) if smooth else None)


def _lofted(rings: np.ndarray, material: Material, normals: np.ndarray | None) -> Mesh:
    """`loft`, with the normals `[r k 3]` of its skin or None for flat facets."""
    faces, uvs = _loft_topology(*rings.shape[:2])
    low, high = rings[0].mean(axis=0, keepdims=True), rings[-1].mean(axis=0, keepdims=True)
    vertices = np.concatenate([_closed(rings), low, rings[0, ::-1], high, rings[-1]])
    if normals is not None:
        axis = (high - low) / np.sqrt(((high - low) ** 2).sum())
        cap = np.repeat(axis, rings.shape[1] + 1, axis=0)
        normals = np.concatenate([_closed(normals), -cap, cap])
    return Mesh(vertices, faces, uvs, material, normals)


@functools.cache
def _loft_topology(count: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces and texture coordinates of a skin (`_skin`) and the two fans that close it."""
    faces, uvs = _skin(count, points)
    fans = []
    for start in (len(uvs), len(uvs) + points + 1):
        rim = start + 1 + np.arange(points)
        fans.append(np.stack([np.full(points, start), rim, np.roll(rim, -1)], axis=1))
    return (
        np.concatenate([faces, *fans]),
        np.concatenate([uvs, np.full((2 * points + 2, 2), 0.5)]),
    )


def tube(
    start: ArrayLike,
    end: ArrayLike,
    radii: tuple[float, float],
    material: Material,
    sides: int = 10,
) -> Mesh:
    """A (tapered) cylinder from `start` to `end`."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    length = np.sqrt(((end - start) ** 2).sum())
    x, y, z = axis = (end - start) / length
    # The cross product with the x axis, or with the y axis if the x axis is too close.
    first = np.array([0.0, z, -y]) if abs(x) < 0.9 else np.array([-z, 0.0, x])
    first /= np.sqrt((first**2).sum())
    a, b, c = first
    second = np.array([y * c - z * b, z * a - x * c, x * b - y * a])
    circle = _circle(sides) @ np.stack([first, second])
    rings = np.stack([start + radii[0] * circle, end + radii[1] * circle])
    taper = (radii[0] - radii[1]) / length
    normal = (circle + taper * axis) / np.sqrt(1 + taper**2)
    return _lofted(rings, material, np.stack([normal, normal]))


@functools.cache
def _circle(sides: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def ball(
    radii: ArrayLike,
    center: ArrayLike,
    material: Material,
    *,
    rng: np.random.Generator | None = None,
    bumps: float = 0.0,
    steps: tuple[int, int] = (9, 12),
) -> Mesh:
    """A smooth-shaded ellipsoid; `bumps` displaces it by random waves of that relative size."""
    sphere, faces, uvs = _unit_ball(*steps)
    size = np.ones(sphere.shape[:2])
    if rng is not None:
        for wave, shift in zip(rng.normal(size=(4, 3)) * 3.0, rng.uniform(0, 7, 4), strict=True):
            size = size + bumps / 2 * np.sin(sphere @ wave + shift)
    points = sphere * size[..., None] * np.asarray(radii, float)
    normals = _grid_normals(points)
    normals[0], normals[-1] = (0, 0, -1), (0, 0, 1)
    return Mesh(_closed(points) + np.asarray(center, float), faces, uvs, material, _closed(normals))


@functools.cache
def _unit_ball(polar: int, around: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    theta, phi = np.meshgrid(
        np.linspace(np.pi, 0, polar),
        np.linspace(0, 2 * np.pi, around, endpoint=False),
        indexing="ij",
    )
    sphere = np.stack(
        [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1
    )
    faces, uvs = _skin(polar, around)
    return sphere, faces, uvs * np.array([2.0, 1.0])


def ribbon(
    right: np.ndarray, left: np.ndarray, material: Material, u: np.ndarray, v: np.ndarray
) -> Mesh:
    """A strip between two polylines `[n 3]`, seen from above if `right` is on the right.

    Args:
        right, left: `[n 3]` the two edges.
        material: the surface.
        u: `[2]` texture coordinate at the left and at the right edge.
        v: `[n]` texture coordinate along the strip.
    """
    count = len(left)
    index = np.arange(count - 1)
    faces = np.concatenate(
        [
            np.stack([index, index + count, index + count + 1], axis=1),
            np.stack([index, index + count + 1, index + 1], axis=1),
        ]
    )
    uvs = np.concatenate(
        [np.stack([np.full(count, u[0]), v], axis=1), np.stack([np.full(count, u[1]), v], axis=1)]
    )
    return Mesh(np.concatenate([left, right]), faces, uvs, material)


def lathe(
    profile: Float[np.ndarray, "n 2"], material: Material, sides: int = 32, crease: float = 0.7
) -> Mesh:
    """A closed body of revolution about the z axis.

    Args:
        profile: `[n 2]` (radius, height) from one point on the axis to another, with the body on
            the left: from the centre of the foot outwards and up.
        material: the surface; u runs once around, v from the axis (0) to the highest point (1) and
            back to the axis (0), so that the inside and outside of a vessel match.
        sides: number of sides of the circle.
        crease: radians; edges where the profile turns by more are sharp, others are rounded.
    """
    along = np.diff(profile, axis=0)
    length = np.hypot(*along.T)
    facing = np.stack([along[:, 1], -along[:, 0]], axis=1) / length[:, None]
    sharp = np.einsum("ij,ij->i", facing[:-1], facing[1:]) < np.cos(crease)
    # Every point once for the piece before it and, at sharp edges, once more for the piece after.
    point, normal, piece = [0], [facing[0]], [0]
    for i in range(1, len(profile) - 1):
        if sharp[i - 1]:
            point += [i, i]
            normal += [facing[i - 1], facing[i]]
            piece += [piece[-1], piece[-1] + 1]
        else:
            mean = length[i - 1] * facing[i - 1] + length[i] * facing[i]
            point.append(i)
            normal.append(mean / np.hypot(*mean))
            piece.append(piece[-1])
    point.append(len(profile) - 1)
    normal.append(facing[-1])
    piece.append(piece[-1])

    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def turned(line: np.ndarray) -> np.ndarray:
        rings = np.empty((len(line), sides, 3))
        rings[..., :2] = line[:, None, :1] * circle
        rings[..., 2] = line[:, 1:]
        return _closed(rings)

    on_axis = profile[point, 0] < 1e-9
    normals = np.where(on_axis[:, None], np.array([0.0, 1.0]) * np.sign(normal), normal)
    faces, uvs = _skin(len(point), sides)
    lower, upper = faces[: len(faces) // 2], faces[len(faces) // 2 :]
    ring = lower[:, 0] // (sides + 1)
    within = np.asarray(piece)[ring] == np.asarray(piece)[ring + 1]
    travelled = np.concatenate([[0.0], np.cumsum(length)])
    top = travelled[np.argmax(profile[:, 1])]
    v = np.where(
        travelled <= top,
        travelled / top,
        (travelled[-1] - travelled) / (travelled[-1] - top + 1e-12),
    )
    uvs = np.column_stack([uvs[:, 0], v[point].repeat(sides + 1)])
    return Mesh(
        turned(profile[point]),
        np.concatenate([lower[within & ~on_axis[ring]], upper[within & ~on_axis[ring + 1]]]),
        uvs,
        material,
        turned(normals),
    )


def blocked(meshes: Iterable[Mesh], origin: np.ndarray, direction: np.ndarray) -> bool:
    """Whether a ray from `origin` `[3]` along `direction` `[3]` hits any triangle.

    Moeller and Trumbore, "Fast, minimum storage ray-triangle intersection", 1997.
    """
    for mesh in meshes:
        a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
        edge, other = b - a, c - a
        across = np.cross(direction, other)
        determinant = (edge * across).sum(axis=1)
        parallel = np.abs(determinant) < 1e-12
        scale = 1 / np.where(parallel, 1.0, determinant)
        offset = origin - a
        u = (offset * across).sum(axis=1) * scale
        along = np.cross(offset, edge)
        v = along @ direction * scale
        distance = (other * along).sum(axis=1) * scale
        if (~parallel & (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 1e-6)).any():
            return True
    return False
