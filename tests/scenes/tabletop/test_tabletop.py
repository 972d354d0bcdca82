"""Table-tops: things stand on the table without touching; conditions change only the ware."""

from dataclasses import replace

import numpy as np
import pytest

from diffdepth_jax.scenes import shapes, tabletop
from diffdepth_jax.scenes.layouts import Layout
from diffdepth_jax.scenes.tabletop import arrangement, objects

SIZE = (24, 32)
APART = [np.array([np.cos(a), np.sin(a)]) for a in np.linspace(0, np.pi, 90, endpoint=False)]


def layout(seed):
    return tabletop.tabletop(np.random.default_rng(seed), SIZE, 0.85)


def points(thing):
    return np.concatenate([mesh.vertices for mesh in thing])


def separated(first, second):
    """Whether a vertical plane separates two point clouds."""
    for direction in APART:
        one, other = first[:, :2] @ direction, second[:, :2] @ direction
        if one.max() < other.min() or other.max() < one.min():
            return True
    return False


@pytest.mark.parametrize("seed", range(4))
def test_things_are_placed_apart_and_on_the_table(seed):
    rng = np.random.default_rng(seed)
    things = [kind(rng) for kind in objects.VESSELS + objects.OTHERS]

    def inside(corners):
        return bool((np.abs(corners) < (0.6, 0.4)).all())

    placed = arrangement.arrange(rng, things, inside, spread=0.2)
    assert 6 < len(placed) <= len(things)
    for i, thing in enumerate(placed):
        cloud = points(thing)
        assert (np.abs(cloud[:, :2]) < (0.6, 0.4)).all()
        assert cloud[:, 2].min() == pytest.approx(0, abs=1e-9)
        assert all(separated(cloud, points(other)) for other in placed[:i])


def test_apart_measures_the_gap():
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    beside = square + np.array([1.2, 0.5])
    assert arrangement.apart(square, beside, gap=0.19)
    assert not arrangement.apart(square, beside, gap=0.21)
    diamond = np.array([(0.8, 1.8), (1.8, 0.8), (2.8, 1.8), (1.8, 2.8)])
    assert arrangement.apart(square, diamond, gap=0.4)  # only an edge of the diamond separates them
    assert not arrangement.apart(square, square + 0.9, gap=0.0)


@pytest.mark.parametrize("seed", range(8))
def test_ware_stands_on_the_table_in_front_of_the_camera(seed):
    scene = layout(seed)
    ware = [mesh for mesh in scene.meshes if mesh.material.role == objects.WARE]
    top = max(m.vertices[:, 2].max() for m in scene.meshes if m.material.role == "table")
    assert len(ware) >= 2
    for i, mesh in enumerate(ware):
        assert mesh.vertices[:, 2].min() == pytest.approx(top, abs=1e-9)
        assert all(separated(mesh.vertices, other.vertices) for other in ware[:i])
    camera = scene.camera
    seen = [(mesh.vertices.mean(axis=0) - camera.position) @ camera.orientation for mesh in ware]
    pixels = np.array([(camera.intrinsics @ place)[:2] / place[2] for place in seen])
    in_view = (pixels > -0.5).all(axis=1) & (pixels < np.array(SIZE[::-1]) - 0.5).all(axis=1)
    assert in_view.any() and min(place[2] for place in seen) > 0
    # Both the camera and the table are inside the walls.
    room = np.concatenate([m.vertices for m in scene.meshes if m.material.role == "wall"])
    low, high = room.min(axis=0), room.max(axis=0)
    for inner in (camera.position, *np.concatenate([mesh.vertices for mesh in ware])):
        assert (low < inner).all() and (inner < high).all()


def test_one_seed_is_one_scene():
    first, again = layout(1), layout(1)
    assert len(first.meshes) == len(again.meshes)
    for mesh, same in zip(first.meshes, again.meshes, strict=True):
        np.testing.assert_array_equal(mesh.vertices, same.vertices)
        np.testing.assert_array_equal(mesh.material.texture, same.material.texture)
    np.testing.assert_array_equal(first.camera.orientation, again.camera.orientation)
    assert first.panels == again.panels and first.weather == again.weather
    heights = {layout(seed).camera.position[2] for seed in range(2, 6)}
    assert len(heights) == 4


@pytest.mark.parametrize(
    ("name", "kinds"), [("transparent", {"glass", "thin_glass"}), ("mirror", {"mirror"})]
)
def test_conditions_change_only_ware(name, kinds):
    shares, seen = [], set()
    for seed in range(6):
        scene = layout(seed)
        rng = np.random.default_rng(seed)
        changed = tabletop.CONDITIONS[name](scene, rng)
        assert changed.camera is scene.camera and changed.panels is scene.panels
        assert len(changed.meshes) == len(scene.meshes)
        count = 0
        for before, after in zip(scene.meshes, changed.meshes, strict=True):
            assert after.vertices is before.vertices and after.faces is before.faces
            if after is not before:
                assert before.material.role == objects.WARE
                seen.add(after.material.kind)
                count += 1
        ware = sum(mesh.material.role == objects.WARE for mesh in scene.meshes)
        assert 1 <= count <= ware
        shares.append(count / ware)
    assert min(shares) < 1 and max(shares) == 1  # some scenes partly, some entirely
    assert seen == kinds
    assert tabletop.CONDITIONS["clear"](scene, rng) is scene


def test_categories_match_boosters():
    grey = objects.ball(np.random.default_rng(0))[0]

    def mesh(kind, gloss):
        return replace(grey, material=replace(grey.material, kind=kind, gloss=gloss))

    meshes = (mesh("opaque", 0.2), mesh("opaque", 0.8), mesh("mirror", 0.0), mesh("glass", 0.0))
    scene = Layout(meshes, layout(0).camera, sky=None)
    surface = np.array([[0, 1, 2], [3, 4, -1]], np.int32)  # 4 would be a panel
    result = tabletop.categories(scene, surface)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, [[0, 1, 2], [3, 0, 0]])


def test_no_ray_leaves_the_room():
    """Even upwards the widest picture ends at a wall."""
    for size in ((24, 32), (48, 24)):
        scene = tabletop.tabletop(np.random.default_rng(3), size, 0.75)
        rays = scene.camera.rays().reshape(-1, 3)
        walls = [m for m in scene.meshes if m.material.role in ("wall", "floor")]
        origin = scene.camera.position
        assert all(shapes.blocked(walls, origin, ray) for ray in rays)
