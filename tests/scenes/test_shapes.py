"""Meshes are closed, face outwards and have the right size."""

import numpy as np
import pytest

from diffdepth_jax.scenes import materials, shapes

GREY = materials.plain("grey", (0.5, 0.5, 0.5))


def volume(mesh):
    """Enclosed volume by the divergence theorem; positive if all faces point outwards."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return np.einsum("fi,fi->", a, np.cross(b, c)) / 6


def test_box_is_closed_and_outward():
    mesh = shapes.box((2.0, 3.0, 4.0), (5.0, -1.0, 0.5), GREY)
    assert volume(mesh) == pytest.approx(24.0)
    np.testing.assert_allclose(mesh.vertices.min(axis=0), [4.0, -2.5, -1.5])
    np.testing.assert_allclose(mesh.vertices.max(axis=0), [6.0, 0.5, 2.5])


def test_box_texture_repeats_per_metre():
    mesh = shapes.box((2.0, 3.0, 4.0), (0, 0, 0), GREY, texture_size=0.5)
    front = mesh.uvs[:4]  # 2 m wide, 4 m high
    np.testing.assert_allclose(front.max(axis=0), [4.0, 8.0])


def test_tube_has_the_volume_of_a_prism():
    mesh = shapes.tube((1, 2, 3), (1, 2, 8), (0.5, 0.5), GREY, sides=12)
    assert volume(mesh) == pytest.approx(5 * 0.5 * 12 * 0.25 * np.sin(2 * np.pi / 12))


@pytest.mark.parametrize("end", [(3, 0, 0), (0, 0, 3), (-1, 2, 0.5)])
def test_tube_normals_point_outwards(end):
    mesh = shapes.tube((0, 0, 0), end, (0.5, 0.4), GREY)
    skin = 2 * 11  # two rings, the first point doubled
    axis = np.asarray(end) / np.linalg.norm(end)
    points = mesh.vertices[:skin]
    outwards = points - (points @ axis)[:, None] * axis
    assert ((outwards * mesh.normals[:skin]).sum(axis=1) > 0.3).all()


def test_ball_has_an_ellipsoids_volume_and_normals():
    mesh = shapes.ball((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), GREY, steps=(60, 80))
    assert volume(mesh) == pytest.approx(4 / 3 * np.pi * 6, rel=0.01)
    exact = (mesh.vertices - (4, 5, 6)) / np.array([1.0, 4.0, 9.0])
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert ((exact * mesh.normals).sum(axis=1) > 0.99).all()


def test_bumps_depend_only_on_the_generator():
    def bumpy(seed):
        rng = np.random.default_rng(seed)
        return shapes.ball((1, 1, 1), (0, 0, 0), GREY, rng=rng, bumps=0.3).vertices

    np.testing.assert_array_equal(bumpy(1), bumpy(1))
    assert np.abs(bumpy(1) - bumpy(2)).max() > 0.05


def test_ribbon_faces_up():
    y = np.arange(4.0)
    left, right = (np.stack([np.full(4, x), y, 0 * y], axis=1) for x in (-1.0, 1.0))
    mesh = shapes.ribbon(right, left, GREY, np.array([0.0, 1.0]), y)
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    normals = np.cross(b - a, c - a)
    np.testing.assert_allclose(normals / 2, np.tile([0, 0, 1.0], (6, 1)))
    assert np.linalg.norm(normals, axis=1).sum() / 2 == pytest.approx(2 * 3)


def test_rotation_turns_the_documented_way():
    forward, up = np.array([0.0, 1, 0]), np.array([0.0, 0, 1])
    np.testing.assert_allclose(shapes.rotation(yaw=np.pi / 2) @ forward, [-1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(shapes.rotation(pitch=np.pi / 2) @ forward, up, atol=1e-12)
    np.testing.assert_allclose(shapes.rotation(roll=np.pi / 2) @ up, [1, 0, 0], atol=1e-12)


def test_merged_keeps_every_triangle():
    other = materials.plain("red", (1, 0, 0))
    parts = [
        shapes.box((1, 1, 1), (0, 0, 0), GREY),
        shapes.box((1, 1, 1), (3, 0, 0), other),
        shapes.box((1, 1, 1), (6, 0, 0), GREY),
        shapes.ball((1, 1, 1), (9, 0, 0), GREY),
    ]
    result = shapes.merged(parts)
    assert [mesh.material for mesh in result] == [GREY, other, GREY]  # flat, flat, smooth
    assert volume(result[0]) == pytest.approx(2.0)
    assert sum(len(mesh.faces) for mesh in result) == sum(len(mesh.faces) for mesh in parts)


def test_lathe_turns_a_profile_into_a_body():
    """A cone on a cylinder: volumes of a twelve-sided prism and pyramid, sharp edges."""
    profile = np.array([(0, 0), (0.5, 0), (0.5, 2), (0, 2.5)])
    mesh = shapes.lathe(profile, GREY, sides=12)
    polygon = 12 / 2 * 0.25 * np.sin(2 * np.pi / 12)
    assert volume(mesh) == pytest.approx(polygon * 2 + polygon * 0.5 / 3)
    wall = np.isclose(np.hypot(*mesh.vertices[:, :2].T), 0.5)
    slopes = np.unique(np.round(mesh.normals[wall, 2], 6))  # foot, wall and cone, one each
    np.testing.assert_allclose(slopes, [-1, 0, np.sqrt(0.5)], atol=1e-6)
    rounded = shapes.lathe(profile, GREY, sides=12, crease=4.0)
    assert len(rounded.vertices) == 4 * 13 < len(mesh.vertices)
    # v increases up to the highest point.
    assert mesh.uvs[np.argmax(mesh.vertices[:, 2]), 1] == pytest.approx(1)
