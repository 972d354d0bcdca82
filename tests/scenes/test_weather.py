"""Effects of air, lens and sensor, against formulas and counts."""

from dataclasses import replace

import numpy as np
import pytest

from diffdepth_jax.scenes import layouts, shapes, weather

SIZE = (48, 160)
AXES = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
CAMERA = layouts.Camera(SIZE, layouts.pinhole(SIZE, 0.6), np.array([0, 0, 1.5]), AXES, AXES)
DRY = layouts.Weather()


def developed(radiance, view=DRY, glow=None, to_sun=None):
    glow = np.zeros_like(radiance) if glow is None else glow
    return weather.developed(radiance, glow, CAMERA, view, to_sun) / 255.0


def grey(value=0.2):
    return np.full((*SIZE, 3), value)


def test_haze_follows_koschmieders_law():
    rng = np.random.default_rng(0)
    radiance, airlight = rng.uniform(0, 2, (4, 5, 3)), np.array([0.7, 0.8, 0.9])
    distance = rng.uniform(0, 200, (4, 5))
    hazy = weather.hazy(radiance, np.exp(-0.02 * distance), airlight)
    for row in range(4):
        for column in range(5):
            clear = np.exp(-0.02 * distance[row, column])
            for channel in range(3):
                expected = radiance[row, column, channel] * clear + airlight[channel] * (1 - clear)
                assert hazy[row, column, channel] == pytest.approx(expected)


def test_exposure_does_not_depend_on_the_unit():
    radiance = np.random.default_rng(0).uniform(0.1, 1, (*SIZE, 3))
    np.testing.assert_allclose(developed(radiance), developed(1000 * radiance), atol=1.01 / 255)
    assert developed(radiance, replace(DRY, key=0.04)).mean() < 0.7 * developed(radiance).mean()


def test_noise_grows_with_its_deviation_and_depends_on_the_seed():
    spread = [developed(grey(), replace(DRY, noise=n)).std() for n in (0.0, 0.004, 0.02)]
    assert spread[0] < 1e-9 and 0.005 < spread[1] < 0.6 * spread[2]
    first, other = (developed(grey(), replace(DRY, noise=0.01, seed=seed)) for seed in (1, 2))
    assert (first != other).any()
    np.testing.assert_array_equal(first, developed(grey(), replace(DRY, noise=0.01, seed=1)))


@pytest.mark.parametrize("kind", ["rain", "snow"])
def test_heavier_precipitation_covers_more_pixels(kind):
    changed = [
        (np.abs(developed(grey(), replace(DRY, **{kind: a})) - developed(grey())) > 1e-9).mean()
        for a in (0.0, 0.3, 1.0)
    ]
    assert changed[0] == 0 < changed[1] < changed[2] < 0.9
    assert developed(grey(), replace(DRY, **{kind: 1.0})).mean() > developed(grey()).mean()


def test_rain_falls_in_vertical_streaks():
    picture = developed(grey(), replace(DRY, rain=1.0, seed=4)).mean(axis=-1)
    down, across = (np.abs(np.diff(picture, axis=axis)).mean() for axis in (0, 1))
    assert down < 0.7 * across


def test_halo_surrounds_a_lamp():
    glow = np.zeros((*SIZE, 3))
    glow[20, 80] = 2.0
    plain, haloed = (
        developed(grey(0.02) + glow, replace(DRY, halo=h, key=0.05), glow).mean(axis=-1)
        for h in (0.0, 0.3)
    )
    added = haloed - plain
    rings = [added[20, 80 + reach] for reach in (1, 2, 4, 30)]
    assert rings[0] > rings[1] > rings[2] > rings[3] >= 0
    assert added[20, 82] == pytest.approx(added[22, 80], abs=2 / 255)


def test_glare_is_brightest_at_the_sun():
    to_sun = shapes.rotation(yaw=-0.2, pitch=0.1) @ np.array([0, 1.0, 0])
    picture = developed(grey(), replace(DRY, glare=1.0), to_sun=to_sun).mean(axis=-1)
    x, y, z = AXES.T @ to_sun
    column, row = (CAMERA.intrinsics @ np.array([x, y, z]) / z)[:2].round().astype(int)
    assert picture[row, column] == picture.max() > 0.95
    assert picture[row, column] - picture[-1, 0] > 0.2
