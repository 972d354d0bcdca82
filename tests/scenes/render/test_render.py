"""Rendered depth against ray-plane and ray-sphere intersections by hand; seeded pictures."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("mitsuba", reason="rendering needs the optional extra `render`")

from diffdepth_jax.scenes import layouts, materials, render, shapes
from diffdepth_jax.scenes.render import denoising, outdoors, parts, passes, picture

SIZE = (20, 48)
GREY = materials.plain("grey", (0.5, 0.5, 0.5))
SKY = layouts.Sky(sun_elevation=0.8, sun_azimuth=1.0, turbidity=3.0, cloudiness=0.3, cloud_seed=0)


def camera(yaw=0.0, pitch=0.0, roll=0.0, position=(0.0, 0.0, 1.5), focal=0.6):
    axes = shapes.rotation(yaw, pitch, roll) @ np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    return layouts.Camera(SIZE, layouts.pinhole(SIZE, focal), np.asarray(position), axes, axes)


def rays(view):
    """World directions with unit planar depth through the pixel centres, in nested loops."""
    directions = np.zeros((*view.size, 3))
    for row in range(view.size[0]):
        for column in range(view.size[1]):
            x = (column - view.intrinsics[0, 2]) / view.intrinsics[0, 0]
            y = (row - view.intrinsics[1, 2]) / view.intrinsics[1, 1]
            right, down, forward = view.orientation.T
            directions[row, column] = forward + x * right + y * down
    return directions


@pytest.mark.parametrize(
    "view", [camera(), camera(pitch=-0.2), camera(yaw=0.3, pitch=0.05, roll=0.1, focal=0.4)]
)
def test_depth_of_a_plane(view):
    reach = 1e4
    corners = [(-reach, -reach, 0), (reach, -reach, 0), (reach, reach, 0), (-reach, reach, 0)]
    ground = shapes.quad(corners, GREY)
    depth = render.first_hits(layouts.Layout((ground,), view, SKY)).depth
    climb = rays(view)[..., 2]
    expected = np.where(climb < 0, -view.position[2] / np.minimum(climb, -1e-9), 0.0)
    expected[expected > 2000] = 0  # leaves the last row before the horizon out of the comparison
    near = (expected > 0) | (climb > 1e-3)
    np.testing.assert_allclose(depth[near], expected[near], rtol=2e-5)


def test_depth_and_normal_of_a_sphere():
    view = camera(yaw=0.1, pitch=-0.05)
    centre, radius = np.array([0.5, 9.0, 1.2]), 2.0
    ball = shapes.ball((radius,) * 3, centre, GREY, steps=(240, 360))
    depth, normal, surface, behind, _ = render.first_hits(layouts.Layout((ball,), view, SKY))
    direction, offset = rays(view), view.position - centre
    a = (direction**2).sum(axis=-1)
    b = direction @ offset
    discriminant = b**2 - a * (offset @ offset - radius**2)
    expected = np.where(discriminant > 0, (-b - np.sqrt(np.maximum(discriminant, 0))) / a, 0.0)
    sure = np.abs(discriminant) > 0.1  # rays that graze the outline may go either way
    assert (expected > 0).sum() > 50
    np.testing.assert_allclose(depth[sure], expected[sure], rtol=1e-4)
    hit = sure & (expected > 0)
    outwards = (view.position + expected[..., None] * direction - centre) / radius
    np.testing.assert_allclose(normal[hit], outwards[hit], atol=0.02)
    assert (surface[hit] == 0).all() and (surface[sure & ~hit] == -1).all()
    np.testing.assert_allclose(behind, depth, rtol=1e-5)


def test_glass_is_a_surface_that_does_not_hide_what_is_behind():
    """A pane 5 m ahead, a wall 8 m ahead: the planar depth of both, in every pixel."""

    def upright(y, material):
        corners = [(-99, y, -50), (99, y, -50), (99, y, 50), (-99, y, 50)]
        return shapes.quad(corners, material)

    pane = dataclasses.replace(GREY, kind="thin_glass")
    scene = layouts.Layout((upright(8, GREY), upright(5, pane)), camera(), SKY)
    hits = render.first_hits(scene)
    np.testing.assert_allclose(hits.depth, 5.0, rtol=1e-6)
    np.testing.assert_allclose(hits.behind, 8.0, rtol=1e-5)
    assert (hits.surface == 1).all()


def test_picture_is_seeded_and_upright():
    """Equal seeds give equal bytes; a red box at the top left, a green one on the right."""
    red, green = materials.plain("a", (0.9, 0.05, 0.05)), materials.plain("b", (0.05, 0.9, 0.05))
    scene = layouts.Layout(
        (
            shapes.box((4, 1, 1), (-3, 8, 2.5), red),
            shapes.box((4, 1, 1), (3, 8, 0.5), green),
        ),
        camera(),
        SKY,
    )
    hits = render.first_hits(scene)
    depth = hits.depth
    first = render.render(scene, samples=4, seed=1)
    again = render.render(scene, samples=4, seed=1, hits=hits)
    other = render.render(scene, samples=4, seed=2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    half = (SIZE[0] // 2, SIZE[1] // 2)
    is_red = (first[..., 0] > 1.5 * first[..., 1]) & (depth > 0)
    is_green = (first[..., 1] > 1.5 * first[..., 0]) & (depth > 0)
    assert is_red[: half[0], : half[1]].sum() > 20 and is_red[:, half[1] :].sum() == 0
    assert is_green[half[0] :, half[1] :].sum() > 20 and is_green[:, : half[1]].sum() == 0


def test_textures_stand_upright():
    """A texture that is white at the top and dark at the bottom looks so on a wall."""
    texture = np.zeros((8, 8, 3), np.uint8)
    texture[:4] = 230
    texture[4:] = 40
    corners = [(-9, 8, -4.5), (9, 8, -4.5), (9, 8, 7.5), (-9, 8, 7.5)]
    wall = shapes.quad(corners, materials.Material("wall", texture))
    image = render.render(layouts.Layout((wall,), camera(), SKY), samples=4)
    assert image[:8].mean() > 1.5 * image[12:].mean()


def test_no_geometry_is_all_sky():
    far = shapes.box((1, 1, 1), (0, -50, 0), GREY)  # behind the camera
    scene = layouts.Layout((far,), camera(pitch=0.4), SKY)
    image, hits = render.render(scene, samples=1), render.first_hits(scene)
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8 and image.mean() > 20
    assert (hits.depth == 0).all() and (hits.surface == -1).all()


def opaque(scene, samples=16):
    hits = render.first_hits(scene)
    sky = parts.constant(scene.ambient)
    radiance, _ = outdoors.radiance_and_glow(scene, hits, None, sky, samples, 0)
    return radiance, hits


def floor(material, reach=1e3):
    corners = [(-reach, -reach, 0), (reach, -reach, 0), (reach, reach, 0), (-reach, reach, 0)]
    return shapes.quad(corners, material)


ALBEDO = ((128 / 255 + 0.055) / 1.055) ** 2.4  # of GREY, linear


def test_even_light_from_all_sides_gives_the_albedo():
    """A matt plane under a sky of radiance 2 has radiance 2 * albedo; the sky stays 2."""
    scene = layouts.Layout((floor(GREY),), camera(pitch=-0.1), None, ambient=(2.0, 2.0, 2.0))
    radiance, hits = opaque(scene)
    ground = (hits.depth > 0) & (hits.depth < 100)
    np.testing.assert_allclose(radiance[ground], 2 * ALBEDO, rtol=0.02)
    np.testing.assert_allclose(radiance[0], 2.0, rtol=1e-5)


def unsmoothed(monkeypatch):
    """Turns smoothing off, which would blur small pictures."""
    monkeypatch.setattr(
        denoising, "smoothed", lambda radiances, *_, **__: [r for r, _ in radiances]
    )


def lamplight(scene, hits, lamp):
    """Radiance `[h w]` of the grey ground below a lamp: albedo / pi * I * cos / r^2."""
    point = scene.camera.position + hits.depth[..., None] * rays(scene.camera)
    towards = np.array(lamp.position) - point
    distance = np.linalg.norm(towards, axis=-1)
    cosine = towards[..., 2] / distance
    lit = (hits.depth > 0) & (cosine > np.cos(lamp.cutoff))
    return np.where(lit, ALBEDO / np.pi * lamp.intensity[0] * cosine / distance**2, 0.0)


def test_lamplight_follows_the_inverse_square_law(monkeypatch):
    """Directly below a lamp at 15 m, and to the side."""
    lamp = layouts.Lamp((0, 8, 15), (0, 0, -1), (50.0, 50.0, 50.0), cutoff=1.5, beam=1.4)
    scene = layouts.Layout((floor(GREY),), camera(pitch=-0.2), None, lamps=(lamp,))
    unsmoothed(monkeypatch)
    radiance, hits = opaque(scene)
    expected = lamplight(scene, hits, lamp)
    near = (hits.depth > 0) & (hits.depth < 12)
    assert near.sum() > 100
    np.testing.assert_allclose(radiance[near].mean(-1), expected[near], rtol=0.02)


def test_a_pool_of_light_survives_smoothing():
    """A lamp that lights a quarter of the visible ground: the total light follows the law."""
    lamp = layouts.Lamp((0, 6, 3), (0, 0, -1), (1000.0,) * 3, cutoff=0.8, beam=0.799)
    dim = (0.01, 0.01, 0.01)
    scene = layouts.Layout((floor(GREY),), camera(pitch=-0.3), None, ambient=dim, lamps=(lamp,))
    radiance, hits = opaque(scene)
    expected = lamplight(scene, hits, lamp)
    assert 0.2 < (expected > 0).sum() / (hits.depth > 0).sum() < 0.3
    assert radiance[hits.depth > 0].mean(-1).sum() == pytest.approx(expected.sum(), rel=0.15)


def test_wet_ground_reflects_by_fresnels_law():
    """A glowing board behind a road covered with smooth water; each ray is reflected by hand."""
    board = dataclasses.replace(GREY, emission=np.full((2, 2, 3), 255, np.uint8), radiance=30.0)
    upright = shapes.quad([(-3, 12, 0.5), (3, 12, 0.5), (3, 12, 2.5), (-3, 12, 2.5)], board)
    ground = dataclasses.replace(GREY, role="road", gloss=0.999)
    view, black = camera(pitch=-0.15), parts.constant((0.0, 0.0, 0.0))
    scene = layouts.Layout((floor(ground), upright), view, None)
    hits = render.first_hits(scene)

    def mirrored_by(scene):
        stage = outdoors._built(scene, None, black, 0.0)
        seen = passes.render_pass(stage.scene, view, {"type": "path", "max_depth": 1}, 16, 0)
        outdoors._flood(stage, scene)
        both = {"type": "direct", "emitter_samples": 1, "bsdf_samples": 1}
        return passes.render_pass(stage.scene, view, both, 16, 0) - seen

    mirrored = mirrored_by(scene)

    ray = rays(view)
    point = view.position + hits.depth[..., None] * ray
    reach = (12 - point[..., 1]) / ray[..., 1]
    across, up = point[..., 0] + reach * ray[..., 0], -reach * ray[..., 2]
    on_road = hits.surface == 0
    margin = np.minimum(3 - np.abs(across), 1 - np.abs(up - 1.5))  # metres inside the board
    cosine = -ray[..., 2] / np.linalg.norm(ray, axis=-1)
    bent = np.sqrt(1 - (1 - cosine**2) / 1.33**2)
    fresnel = (((cosine - 1.33 * bent) / (cosine + 1.33 * bent)) ** 2
               + ((1.33 * cosine - bent) / (1.33 * cosine + bent)) ** 2) / 2  # fmt: skip
    shown, dark = on_road & (margin > 0.5), on_road & (margin < -0.5)
    assert shown.sum() > 10 and dark.sum() > 100
    np.testing.assert_allclose(mirrored[shown].mean(-1), 30 * fresnel[shown], rtol=0.1)
    assert mirrored[dark].max() < 0.3 and np.abs(mirrored[~on_road]).max() < 30 * 0.6
    dry = dataclasses.replace(scene, meshes=(floor(GREY), upright))
    assert (mirrored_by(dry) == 0).all()
    # At night with no light but the camera's own lamp.
    lamp = layouts.Lamp((0, 6, 3), (0, 0, -1), (9.0, 9.0, 9.0), cutoff=0.8, beam=0.7)
    alone = layouts.Layout((floor(ground),), view, None, ambient=(0.1, 0.1, 0.1), lamps=(lamp,))
    assert np.isfinite(opaque(alone, samples=4)[0]).all()


def test_glow_is_visible_but_not_part_of_the_colour():
    """The glow of a glowing plane is kept apart; its colour is as if it did not glow."""
    shining = dataclasses.replace(GREY, emission=np.full((2, 2, 3), 255, np.uint8), radiance=30.0)
    plain, lit = (
        layouts.Layout((floor(m),), camera(pitch=-0.3), None, ambient=(1.0, 1.0, 1.0))
        for m in (GREY, shining)
    )
    hits = render.first_hits(lit)
    _, glow = outdoors.radiance_and_glow(lit, hits, None, parts.constant(lit.ambient), 4, 0)
    ground = hits.depth > 0
    np.testing.assert_allclose(glow[ground][-100:], 30.0, rtol=1e-5)
    np.testing.assert_allclose(passes.glow(lit, 4, 0), glow, rtol=1e-5)
    np.testing.assert_allclose(opaque(lit)[0][-4:], opaque(plain)[0][-4:], rtol=0.02)


def test_air_dims_by_distance():
    """Transmittance along each ray is exp(-extinction * distance), not of planar depth."""
    scene = layouts.Layout((floor(GREY),), camera(pitch=-0.3), SKY)
    hits = render.first_hits(scene)
    clarity = picture._transmittance(scene.camera, hits, 0.05)
    distance = hits.depth * np.linalg.norm(rays(scene.camera), axis=-1)
    sure = (distance > 0) & (distance < 10)  # where steps between pixels are small
    np.testing.assert_allclose(clarity[sure], np.exp(-0.05 * distance[sure]), rtol=2e-3)
    assert (clarity[hits.depth == 0] < 0.3).all()


def test_outdoors_needs_a_power_of_four():
    with pytest.raises(ValueError, match="samples is 6"):
        render.render(layouts.Layout((floor(GREY),), camera(), SKY), samples=6)
