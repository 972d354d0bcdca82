"""Procedural textures."""

import numpy as np
import pytest

from diffdepth_jax.scenes import materials


def test_noise_is_standard_seamless_and_seeded():
    field = materials.noise(np.random.default_rng(3), 64, 96, slope=1.5)
    assert field.shape == (64, 96)
    assert abs(field.mean()) < 1e-9 and field.std() == pytest.approx(1.0)
    # The step over the seam is like any other step.
    inner = np.abs(np.diff(field, axis=0)).mean()
    assert np.abs(field[0] - field[-1]).mean() < 2 * inner
    np.testing.assert_array_equal(
        field, materials.noise(np.random.default_rng(3), 64, 96, slope=1.5)
    )


def test_smoother_noise_has_smaller_steps():
    rough, smooth = (
        materials.noise(np.random.default_rng(0), 64, 64, slope=slope) for slope in (0.5, 2.0)
    )
    assert np.abs(np.diff(smooth)).mean() < 0.5 * np.abs(np.diff(rough)).mean()


@pytest.mark.parametrize(
    "paint",
    [
        lambda rng: materials.road(rng, 6.6, [(3.3, "dashed"), (0.2, "solid"), (5.0, "yellow")]),
        materials.paving,
        materials.grass,
        materials.foliage,
        materials.bark,
        materials.roof,
        materials.windows,
        materials.doors,
        lambda rng: materials.signs(),
        *[lambda rng, s=s: materials.wall(rng, s) for s in ("brick", "plaster", "stone", "panel")],
    ],
)
def test_every_texture_is_a_seeded_byte_picture(paint):
    texture = paint(np.random.default_rng(1)).texture
    assert texture.dtype == np.uint8 and texture.ndim == 3 and texture.shape[2] == 3
    assert texture.std() > 1
    np.testing.assert_array_equal(texture, paint(np.random.default_rng(1)).texture)


def test_road_lines_are_where_they_should_be():
    texture = materials.road(
        np.random.default_rng(0), 8.0, [(2.0, "solid"), (6.0, "dashed")], repeat=12.0
    ).texture.astype(float)
    rows, columns = texture.shape[:2]
    bright = texture.mean(axis=2)
    asphalt = np.median(bright)
    solid, dashed = (bright[:, int(t / 8.0 * columns)] for t in (2.0, 6.0))
    assert (solid > asphalt + 40).mean() > 0.95
    assert (dashed[: rows // 3 - 1] > asphalt + 40).mean() > 0.9
    assert (dashed[rows // 3 + 1 :] > asphalt + 40).mean() < 0.1


def test_atlas_cells_do_not_overlap():
    cells = [materials.atlas_uv(i) for i in range(materials.ATLAS**2)]
    centres = {(round((u0 + u1) * 2, 1), round((v0 + v1) * 2, 1)) for u0, v0, u1, v1 in cells}
    assert len(centres) == len(cells)
    assert cells[0][3] > cells[-1][3], "the first picture is at the top"


def test_unknown_wall_is_named():
    with pytest.raises(ValueError, match="'straw'"):
        materials.wall(np.random.default_rng(0), "straw")
