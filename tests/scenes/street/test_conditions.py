"""Conditions of a street: same geometry, other light, and the expected changes in the picture."""

import numpy as np
import pytest

pytest.importorskip("mitsuba", reason="rendering needs the optional extra `render`")

from diffdepth_jax.scenes import render, shapes, street
from diffdepth_jax.scenes.street import conditions

SIZE = (32, 96)


@pytest.fixture(scope="module")
def clear():
    return street.street(np.random.default_rng(3), SIZE, 0.58)


@pytest.fixture(scope="module")
def hits(clear):
    return render.first_hits(clear)


@pytest.fixture(scope="module")
def pictures(clear, hits):
    return {
        name: render.render(condition(clear, np.random.default_rng(1)), hits=hits) / 255.0
        for name, condition in street.CONDITIONS.items()
    }


def triangles(meshes):
    """All triangles `[n 9]`, sorted, without degenerate ones."""
    corners = np.concatenate([mesh.vertices[mesh.faces] for mesh in meshes]).reshape(-1, 9)
    return corners[np.lexsort(corners.T)]


@pytest.mark.parametrize("name", street.CONDITIONS)
def test_conditions_keep_geometry_and_camera(clear, name):
    changed = street.CONDITIONS[name](clear, np.random.default_rng(0))
    assert changed.camera is clear.camera
    np.testing.assert_array_equal(triangles(changed.meshes), triangles(clear.meshes))
    for old, new in zip(clear.meshes, changed.meshes, strict=False):
        assert old.vertices is new.vertices, "the order of meshes must not change"
    again = street.CONDITIONS[name](clear, np.random.default_rng(0))
    other = street.CONDITIONS[name](clear, np.random.default_rng(1))
    assert (again.weather, again.sky, again.lamps) == (changed.weather, changed.sky, changed.lamps)
    assert name == "clear" or other.weather != changed.weather


def test_snow_has_the_depth_of_the_clear_scene(clear, hits):
    """Snow moves faces to other meshes, so here depth is traced again."""
    snowed = conditions.snow(clear, np.random.default_rng(0))
    depth = render.first_hits(snowed).depth
    np.testing.assert_array_equal(depth, hits.depth)


def ground(clear, hits):
    roads = [mesh.material.role == "road" for mesh in clear.meshes] + [False]
    near = np.array(roads)[hits.surface] & (hits.depth < 15)
    assert near.sum() > 100
    return near


def test_night_is_dark_and_lit_by_lamps(clear, pictures):
    night = conditions.night(clear, np.random.default_rng(1))
    assert pictures["night"].mean() < 0.6 * pictures["clear"].mean()
    assert len(night.lamps) >= 2 and night.sky is None
    own = [lamp for lamp in night.lamps if lamp.position[1] < 3]
    for lamp in own[:2]:
        assert 0.2 < lamp.position[2] < 1.2 and lamp.direction[1] > 0.9, (
            "must be low and shine ahead"
        )
    sky = pictures["clear"].mean(axis=-1)[:4] > 0.5
    assert pictures["night"][:4][sky].mean() < 0.35


def test_fog_hides_distant_things(hits, pictures):
    """Local contrast falls with distance; the sky is a uniform grey."""
    steps = {name: np.abs(np.diff(picture, axis=1)).mean(-1) for name, picture in pictures.items()}
    depth = hits.depth[:, 1:]
    far, near = (depth > 40) | (depth == 0), (depth > 0) & (depth < 15)
    ratio = {name: steps[name][far].mean() / steps[name][near].mean() for name in steps}
    assert ratio["fog"] < 0.5 * ratio["clear"]
    assert pictures["fog"][hits.depth == 0].std(axis=0).max() < 0.02


def test_fog_comes_in_several_densities(clear):
    sight = [
        np.log(20) / conditions.fog(clear, np.random.default_rng(i)).weather.extinction
        for i in range(20)
    ]
    assert 25 <= min(sight) < 50 and 100 < max(sight) <= 200


def test_wet_road_mirrors_and_snow_whitens_it(clear, hits, pictures):
    road = ground(clear, hits)
    rain = conditions.rain(clear, np.random.default_rng(1))
    wet = {mesh.material.gloss for mesh in rain.meshes if mesh.material.role == "road"}
    assert min(wet) >= 0.9
    assert pictures["rain"].mean() < 0.9 * pictures["clear"].mean()
    assert pictures["snow"][road].mean() > 1.3 * pictures["clear"][road].mean()
    saturation = {name: np.ptp(picture[road], axis=-1).mean() for name, picture in pictures.items()}
    assert saturation["snow"] < 0.1


def test_snow_lies_on_surfaces_that_face_up(clear):
    snowed = conditions.snow(clear, np.random.default_rng(0))
    covered = [mesh for mesh in snowed.meshes if mesh.material.role == "snow"]
    assert covered
    for mesh in covered:
        a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
        assert (np.cross(b - a, c - a)[:, 2] > 0).all()


def test_glare_has_the_sun_in_view(clear, pictures):
    sky = conditions.glare(clear, np.random.default_rng(1)).sky
    camera = clear.camera
    x, y, z = camera.orientation.T @ sky.to_sun
    column, row = (camera.intrinsics @ np.array([x, y, z]) / z)[:2].round().astype(int)
    assert z > 0 and 0 <= column < SIZE[1] and 0 <= row < SIZE[0]
    assert pictures["glare"][row, column].min() > 0.95
    assert not shapes.blocked(clear.meshes, camera.position, sky.to_sun)
    assert np.degrees(sky.sun_elevation) < 25
