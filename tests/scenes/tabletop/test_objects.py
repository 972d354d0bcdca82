"""Things on a table: closed, facing outwards and standing on it, with the right profiles."""

from collections import Counter

import numpy as np
import pytest

from diffdepth_jax.scenes import shapes
from diffdepth_jax.scenes.tabletop import objects

KINDS = sorted(set(objects.VESSELS + objects.OTHERS), key=lambda kind: kind.__name__)
SHEETS = ("label",)  # the only open meshes


def volume(mesh):
    """Enclosed volume by the divergence theorem; positive if all faces point outwards."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return np.einsum("fi,fi->", a, np.cross(b, c)) / 6


def is_closed(mesh):
    """Whether every edge is used equally often in both directions."""
    _, point = np.unique(np.round(mesh.vertices, 8) + 0.0, axis=0, return_inverse=True)
    a, b, c = point.reshape(-1)[mesh.faces].T
    edges = Counter(zip(np.concatenate([a, b, c]), np.concatenate([b, c, a]), strict=True))
    return all(edges[second, first] == count for (first, second), count in edges.items())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", range(4))
def test_solid_outward_and_standing(kind, seed):
    meshes = kind(np.random.default_rng(seed))
    points = np.concatenate([mesh.vertices for mesh in meshes])
    assert points[:, 2].min() == pytest.approx(0, abs=1e-9)
    assert np.abs(points[:, :2]).max() < 0.2 and 0.01 < points[:, 2].max() < 0.4
    for mesh in meshes:
        if mesh.material.role in SHEETS:
            continue
        assert is_closed(mesh) and volume(mesh) > 0
        assert mesh.faces.max() < len(mesh.vertices) == len(mesh.uvs)
    ware = [mesh for mesh in meshes if mesh.material.role == objects.WARE]
    assert len(ware) == (kind in objects.VESSELS)  # glass must be one body


@pytest.mark.parametrize("kind", [objects.bottle, objects.bowl, objects.vase, objects.goblet])
def test_shading_normals_agree_with_the_faces(kind):
    for seed in range(3):
        mesh = kind(np.random.default_rng(seed))[0]
        a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
        facing = np.cross(b - a, c - a)
        facing /= np.linalg.norm(facing, axis=1, keepdims=True)
        cosine = np.einsum("fi,fvi->fv", facing, mesh.normals[mesh.faces])
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-9)
        assert cosine.min() > 0.5


def test_curve_passes_through_its_points_without_overshoot():
    points = [(0.03, 0.0), (0.05, 0.02), (0.05, 0.1), (0.01, 0.15), (0.012, 0.3)]
    line = objects.curve(points, steps=7)
    np.testing.assert_allclose(line[::7], points, atol=1e-12)
    for i in range(len(points) - 1):
        piece = line[7 * i : 7 * i + 8]
        low, high = np.minimum(*points[i : i + 2]), np.maximum(*points[i : i + 2])
        assert (piece >= low - 1e-12).all() and (piece <= high + 1e-12).all()


def test_hollow_has_walls_of_the_given_thickness():
    """Volume of a straight beaker's material by hand: outer minus inner cylinder, a round lip."""
    radius, height, wall, bottom = 0.04, 0.1, 0.003, 0.006
    outside = np.column_stack([np.full(21, radius), np.linspace(0, height, 21)])
    profile = objects.hollow(outside, wall, bottom)
    assert profile[0].tolist() == [0, 0] and profile[-1].tolist() == [0, bottom]
    inside = profile[profile[:, 0] < radius - wall + 1e-9]
    assert inside[1:, 1].min() == pytest.approx(bottom)
    sides = 200
    mesh = shapes.lathe(profile, objects.bowl(np.random.default_rng(0))[0].material, sides=sides)
    polygon = sides / 2 * np.sin(2 * np.pi / sides)
    cylinders = polygon * (radius**2 * height - (radius - wall) ** 2 * (height - bottom))
    lip = np.pi / 8 * wall**2 * 2 * np.pi * (radius - wall / 2)
    assert volume(mesh) == pytest.approx(cylinders + lip, rel=3e-3)


def test_narrow_vessels_stay_hollow():
    """The inside of every vessel stays away from the outside."""
    for seed in range(20):
        for kind in (objects.bottle, objects.vase, objects.goblet):
            body = kind(np.random.default_rng(seed))[0]
            profile = np.column_stack([np.hypot(*body.vertices[:, :2].T), body.vertices[:, 2]])[
                ::33
            ]
            top = int(np.argmax(profile[:, 1]))
            outer, inner = profile[: top + 1], profile[top:][::-1]
            assert (np.diff(inner[:, 1]) > -1e-4).all() and (profile[:, 0] >= 0).all()
            between = np.interp(inner[:-6, 1], outer[:, 1], outer[:, 0]) - inner[:-6, 0]
            assert between.min() > 1e-3


def test_equal_seeds_give_equal_objects():
    for kind in KINDS:
        first, again, other = (kind(np.random.default_rng(seed)) for seed in (5, 5, 6))
        for mesh, same in zip(first, again, strict=True):
            np.testing.assert_array_equal(mesh.vertices, same.vertices)
            np.testing.assert_array_equal(mesh.material.texture, same.material.texture)
        assert len(first) != len(other) or not np.array_equal(first[0].vertices, other[0].vertices)
