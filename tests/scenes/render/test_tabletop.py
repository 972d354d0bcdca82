"""Rendered table-tops: first-surface depth by hand, masks, and what conditions leave alone."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("mitsuba", reason="rendering needs the optional extra `render`")

from diffdepth_jax.scenes import materials, render, shapes, tabletop
from diffdepth_jax.scenes.layouts import Camera, Layout, Panel, pinhole
from diffdepth_jax.scenes.render import denoising, indoors, parts, passes
from diffdepth_jax.scenes.tabletop import objects

SIZE = (30, 40)
HEIGHT, RADIUS = 0.7, 0.09
CENTRE = np.array([0.03, 0.1, HEIGHT + RADIUS])


def ball_on_a_table(kind="opaque"):
    """A ball on a square table and nothing else, lit from above."""
    ware = replace(materials.plain(objects.WARE, (0.9, 0.9, 0.9)), kind=kind)
    wood = materials.plain("table", (0.5, 0.35, 0.2))
    ball = shapes.ball([RADIUS] * 3, CENTRE, ware, steps=(120, 180))
    corners = [(-0.6, -0.4, HEIGHT), (0.6, -0.4, HEIGHT), (0.6, 0.4, HEIGHT), (-0.6, 0.4, HEIGHT)]
    axes = shapes.rotation(yaw=0.1, pitch=-0.4) @ np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    camera = Camera(SIZE, pinhole(SIZE, 0.9), np.array([0.05, -0.6, 1.1]), axes, axes)
    light = Panel(((-1, -1, 2.5), (-1, 1, 2.5), (1, 1, 2.5), (1, -1, 2.5)), (3.0, 3.0, 3.0))
    return Layout((ball, shapes.quad(corners, wood)), camera, None, (0.3,) * 3, panels=(light,))


def test_depth_of_a_ball_on_a_table():
    """The nearer of ray-sphere and ray-plane intersections; glass is no exception."""
    scene = ball_on_a_table()
    hits = render.first_hits(scene)
    camera = scene.camera
    expected, owner, sure = np.zeros(SIZE), np.full(SIZE, -1), np.ones(SIZE, bool)
    right, down, forward = camera.orientation.T
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            x = (column - camera.intrinsics[0, 2]) / camera.intrinsics[0, 0]
            y = (row - camera.intrinsics[1, 2]) / camera.intrinsics[1, 1]
            ray = forward + x * right + y * down
            offset = camera.position - CENTRE
            a, b, c = ray @ ray, ray @ offset, offset @ offset - RADIUS**2
            discriminant = b * b - a * c
            sure[row, column] = abs(discriminant) > 2e-4  # clear of the ball's outline
            if discriminant > 0:
                expected[row, column], owner[row, column] = (-b - np.sqrt(discriminant)) / a, 0
            elif ray[2] < 0:
                depth = (HEIGHT - camera.position[2]) / ray[2]
                point = camera.position + depth * ray
                sure[row, column] &= (np.abs(np.abs(point[:2]) - (0.6, 0.4)) > 0.02).all()
                if (np.abs(point[:2]) < (0.6, 0.4)).all():
                    expected[row, column], owner[row, column] = depth, 1
    assert (owner == 0).sum() > 50 and (owner == 1).sum() > 500 and sure.mean() > 0.85
    np.testing.assert_allclose(hits.depth[sure], expected[sure], atol=3e-4)
    np.testing.assert_array_equal(hits.surface[sure], owner[sure])
    for kind in ("glass", "thin_glass", "mirror"):
        other = render.first_hits(ball_on_a_table(kind))
        np.testing.assert_array_equal(other.depth, hits.depth)
        np.testing.assert_array_equal(other.surface, hits.surface)


def test_glass_shows_what_is_behind_and_mirrors_show_what_is_in_front():
    """A red ball: as glass it shows the brown table, as silver the white panel above."""
    pictures = {}
    for kind in ("opaque", "glass", "mirror"):
        scene = ball_on_a_table(kind)
        red = replace(scene.meshes[0].material, texture=np.full((2, 2, 3), (200, 20, 20), np.uint8))
        if kind == "opaque":
            scene = replace(scene, meshes=(replace(scene.meshes[0], material=red), scene.meshes[1]))
        pictures[kind] = render.render(scene, samples=4, seed=0).astype(float)
    ball = render.first_hits(ball_on_a_table()).surface == 0
    redness = {
        kind: (p[..., 0] / (p.sum(axis=-1) + 1))[ball].mean() for kind, p in pictures.items()
    }
    assert redness["opaque"] > 0.5 > redness["glass"] > redness["mirror"]
    assert np.percentile(pictures["mirror"][ball], 95) > 190


def test_masks_are_where_the_changed_things_are():
    scene = tabletop.tabletop(np.random.default_rng(2), SIZE, 0.8)
    hits = render.first_hits(scene)
    assert (hits.depth > 0).all()
    for name, expected in (("transparent", 3), ("mirror", 2)):
        changed = tabletop.CONDITIONS[name](scene, np.random.default_rng(1))
        remade = [a is not b for a, b in zip(scene.meshes, changed.meshes, strict=True)]
        # Independently of the renderer's numbering: where depth grows when they are removed.
        kept = [mesh for mesh, new in zip(scene.meshes, remade, strict=True) if not new]
        without = render.first_hits(replace(scene, meshes=tuple(kept)))
        mask = tabletop.categories(changed, hits.surface)
        assert (mask >= 2).sum() > 10
        np.testing.assert_array_equal(mask == expected, without.depth > hits.depth)
        np.testing.assert_array_equal(mask >= 2, mask == expected)
        again = render.first_hits(changed)
        assert again.depth.tobytes() == hits.depth.tobytes()
    assert (tabletop.categories(scene, hits.surface) < 2).all()


@pytest.mark.parametrize("name", tabletop.CONDITIONS)
def test_pictures_are_seeded_and_differ_at_the_ware(name):
    scene = tabletop.tabletop(np.random.default_rng(2), SIZE, 0.8)
    hits = render.first_hits(scene)
    changed = tabletop.CONDITIONS[name](scene, np.random.default_rng(1))
    first, again, other = (
        render.render(changed, samples=2, seed=seed, hits=hits) for seed in (3, 3, 4)
    )
    assert first.tobytes() == again.tobytes() != other.tobytes()
    if name != "clear":
        clear = render.render(scene, samples=2, seed=3, hits=hits)
        difference = np.abs(first.astype(float) - clear).mean(axis=-1)
        mask = tabletop.categories(changed, hits.surface) >= 2
        assert difference[mask].mean() > 2 * difference[~mask].mean()


def test_specks_are_removed_and_edges_stay():
    radiance = np.ones((9, 9, 3), np.float32)
    radiance[2, 2], radiance[2, 6] = 50.0, 0.0  # specks
    radiance[5:7, 1:8] = 5.0  # a highlight
    where = np.ones((9, 9), bool)
    where[:, 8] = False
    result = denoising.despeckled(radiance, where)
    expected = radiance.copy()
    expected[2, 2] = expected[2, 6] = 1.0
    np.testing.assert_array_equal(result[:, 1:7], expected[:, 1:7])
    # Pixels outside are not used, so a lone pixel keeps its value.
    alone = np.zeros((9, 9), bool)
    alone[2, 2] = True
    assert denoising.despeckled(radiance, alone)[2, 2, 0] == 50.0


def test_glass_and_its_outline_are_rendered_in_detail(monkeypatch):
    scene = ball_on_a_table("glass")
    hits = render.first_hits(scene)
    where, ball = indoors._see_through(scene, hits), hits.surface == 0
    rows, columns = np.nonzero(ball)
    assert where[ball].all() and where.sum() < 2 * ball.sum()
    assert where[rows - 1, columns].all() and where[rows, columns + 1].all()
    assert not indoors._see_through(ball_on_a_table(), hits).any()

    def red(scene, camera, where, *_):
        return np.tile(np.array([10.0, 0, 0]), (where.sum(), 1))

    monkeypatch.setattr(indoors, "_in_detail", red)
    picture = render.render(scene, samples=1, hits=hits).astype(float)
    np.testing.assert_array_equal(picture[..., 0] > 2 * picture[..., 1] + 50, where)


def test_windows_of_detail_are_in_the_right_place(monkeypatch):
    scene = ball_on_a_table()
    where = np.zeros(SIZE, bool)
    where[5:27, 9:33] = True  # several windows, some cropped
    where[14:18] = False
    things = [parts.mesh(mesh, parts.bsdf(mesh.material)) for mesh in scene.meshes]
    lit = parts.scene([*things, *map(parts.panel, scene.panels)])
    whole = passes.traced(lit, scene.camera, 64, 2, 0)[where]
    monkeypatch.setattr(denoising, "despeckled", lambda radiance, where: radiance)
    detail = indoors._in_detail(lit, scene.camera, where, 64, 2, 0)
    assert np.corrcoef(detail.ravel(), whole.ravel())[0, 1] > 0.97
