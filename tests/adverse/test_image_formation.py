"""Models of image formation: their physics on scenes with a known answer, and any input at all."""

import numpy as np
import pytest
from scipy import ndimage

from diffdepth_jax.adverse import image_formation
from diffdepth_jax.scenes.weather import LUMINANCE

SIZE = (48, 96)
INTRINSICS = (70.0, 0.0, 48.0, 0.0, 70.0, 20.0, 0.0, 0.0, 1.0)
every_condition = pytest.mark.parametrize("condition", image_formation.CONDITIONS)


def street(wall=30.0):
    """A level road under a camera at 1.5 m, a wall across it, the sky (unknown depth) above."""
    row = np.mgrid[: SIZE[0], : SIZE[1]][0]
    down = (row - INTRINSICS[5]) / INTRINSICS[4]
    depth = np.minimum(1.5 / np.maximum(down, 1e-6), wall)
    depth[:8] = 0
    rng = np.random.default_rng(0)
    image = rng.integers(60, 200, (*SIZE, 3), dtype=np.uint8)
    image[:8] = (150, 180, 220)
    return image, depth


def rendered(condition, image, depth, seed=3):
    scene = image_formation.scene(image, depth, INTRINSICS)
    return image_formation.render(condition, scene, seed)


def brightness(image):
    return float((image @ LUMINANCE).mean())


@every_condition
def test_only_the_seed_matters_and_strengths_are_reported(condition):
    image, depth = street()
    first, strengths = rendered(condition, image, depth)
    again, same = rendered(condition, image, depth)
    other, others = rendered(condition, image, depth, seed=4)
    assert first.dtype == np.uint8 and first.shape == image.shape
    np.testing.assert_array_equal(first, again)
    assert strengths == same and all(isinstance(value, float) for value in strengths.values())
    assert strengths != others and (first != other).any()
    assert np.abs(first.astype(int) - image).mean() > 10


@every_condition
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 7), (5, 1), (33, 20)], ids=lambda size: f"{size[0]}x{size[1]}"
)
@pytest.mark.parametrize("depth", [0.0, np.nan, 1e-3, 20.0, np.inf])
def test_any_size_and_any_depth(condition, size, depth):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    scene = image_formation.scene(image, np.full(size, depth))
    with np.errstate(all="raise", under="ignore"):
        picture, strengths = image_formation.render(condition, scene, 0)
    assert picture.shape == image.shape
    assert np.isfinite(list(strengths.values())).all()


def test_fog_hides_what_is_beyond_visibility_and_keeps_what_is_near():
    image, _ = street()
    image[:, 48:] = 40  # dark against the fog
    near, strengths = rendered("fog", image, np.full(SIZE, 0.05))
    far, same = rendered("fog", image, np.full(SIZE, 500.0))
    assert same == strengths
    assert np.abs(near[:, 48:].astype(int) - 40).max() <= 12
    contrast = np.abs(far[:, :40].astype(int).mean() - far[:, 56:].mean())
    assert contrast < 2
    # At the visibility itself contrast has fallen to 5% (WMO): in radiance, not in byte values.
    scene = image_formation.scene(image, np.full(SIZE, strengths["sight_m"]), INTRINSICS)
    clarity = np.exp(-np.log(20) / strengths["sight_m"] * scene.distance)
    assert clarity[20, 48] == pytest.approx(0.05, rel=1e-6)


def test_dust_is_warmer_than_fog():
    image, depth = street()
    dust, fog = (rendered(condition, image, depth)[0] for condition in ("dust", "fog"))
    assert dust[..., 0].mean() > dust[..., 2].mean() + 20
    assert abs(fog[..., 0].mean() - fog[..., 2].mean()) < 15


def test_night_is_dark_and_headlights_fall_off_with_distance():
    image, depth = street()
    image[:] = 128
    night, _ = rendered("night", image, depth)
    assert brightness(night[8:20]) < 0.4 * brightness(image)  # above the beams
    beams = image_formation._headlights(image_formation.scene(image, depth, INTRINSICS))
    road = beams[:, 48]
    assert road[-1] > 10 * road[24] > 0  # 1.5 m below the camera: near at the bottom
    far = image_formation._headlights(image_formation.scene(image, 2 * depth, INTRINSICS))
    lit = (depth > 8) & (depth < 30)
    np.testing.assert_allclose((far / beams)[lit], 0.25, rtol=1e-6)


@pytest.mark.parametrize("condition", ["rain", "snow"])
def test_drops_and_flakes_behind_a_near_wall_are_hidden(condition):
    """With a wall half a metre away there is no drop or flake in between."""
    image, _ = street()
    image[:] = 128
    draw = {"rain": image_formation._streaks, "snow": image_formation._flakes}[condition]
    more = () if condition == "rain" else (np.ones(3),)
    for distance, falls in ((0.5, False), (25.0, True)):
        scene = image_formation.scene(image, np.full(SIZE, distance), INTRINSICS)
        rng = np.random.default_rng(0)
        result = draw(scene, rng, scene.radiance, 1.0, *more)
        assert (np.abs(result - scene.radiance).max() > 0.01) == falls


def test_snow_lies_only_on_surfaces_that_face_up():
    image, depth = street()
    upward = image_formation._upward(image_formation.scene(image, depth, INTRINSICS))
    assert upward[-8:, 5:-5].min() > 0.9  # the road
    assert upward[9:20, 5:-5].max() < 0.05  # the wall
    assert upward[:7].max() == 0  # the sky
    image[:] = 60
    snowy, _ = rendered("snow", image, depth)
    assert brightness(snowy[-8:]) > brightness(snowy[9:18]) + 40


def test_wet_ground_is_darker_and_mirrors_the_sky_at_grazing_angles():
    image, depth = street()
    image[:] = 60

    def wet(image):
        scene = image_formation.scene(image, depth, INTRINSICS)
        return image_formation._wet(scene, np.random.default_rng(0), scene.radiance, 1.0)

    dry, dull = image_formation.scene(image, depth, INTRINSICS).radiance, wet(image)
    np.testing.assert_allclose(dull[10:18], dry[10:18], rtol=0.01)  # the wall
    assert dull[-4:].mean() < 0.8 * dry[-4:].mean()
    image[:8] = 250
    mirrored = (wet(image) - dull)[..., 0]
    assert mirrored[34:38].mean() > 2 * mirrored[-4:].mean() > 0
    assert np.abs(mirrored[10:18]).max() < 0.01


def test_the_sun_is_in_the_sky_and_its_glare_falls_with_the_angle():
    image, depth = street()
    image[:] = 60
    glare, strengths = rendered("glare", image, depth)
    assert strengths["row"] < 8
    column = int(strengths["column"])
    line = glare[30].astype(int).sum(-1)
    away = 0 if column > 48 else 95
    assert line[column] > line[away] + 20


def test_the_sky_is_found_even_if_a_network_gives_it_a_depth():
    image, depth = street()
    depth[:8] = 30.0  # as far as the wall
    image[8:] = np.random.default_rng(0).integers(0, 120, (40, 96, 1))
    scene = image_formation.scene(image, depth, INTRINSICS)
    assert scene.sky[:6].mean() > 0.9 and scene.sky[9:].mean() < 0.02


def test_a_relative_disparity_keeps_its_order():
    disparity = np.random.default_rng(0).normal(size=SIZE)
    depth = image_formation.relative_depth(disparity)
    assert depth.min() == pytest.approx(4) and depth.max() == pytest.approx(80)
    assert (np.argsort(depth, None) == np.argsort(-disparity, None)).all()
    assert np.isfinite(image_formation.relative_depth(np.ones(SIZE))).all()


@pytest.mark.parametrize("size", [(200, 90), (7, 300)])
def test_a_wide_blur_is_the_same_on_a_coarser_grid(size):
    array = np.random.default_rng(0).normal(size=(*size, 3)).cumsum(0).cumsum(1)
    want = ndimage.gaussian_filter(array, (15, 15, 0))
    got = image_formation._blurred(array, 15.0)
    assert np.abs(got - want).max() < 0.02 * np.ptp(want)
