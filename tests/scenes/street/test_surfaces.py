"""Procedural textures of streets."""

import numpy as np
import pytest

from diffdepth_jax.scenes import materials
from diffdepth_jax.scenes.street import surfaces


@pytest.mark.parametrize(
    "paint",
    [
        lambda rng: surfaces.road(rng, 6.6, [(3.3, "dashed"), (0.2, "solid"), (5.0, "yellow")]),
        surfaces.paving,
        surfaces.grass,
        surfaces.foliage,
        surfaces.bark,
        surfaces.roof,
        surfaces.windows,
        surfaces.doors,
        lambda rng: surfaces.signs(),
        *[lambda rng, s=s: materials.wall(rng, s) for s in ("brick", "plaster", "stone", "panel")],
    ],
)
def test_every_texture_is_a_seeded_byte_picture(paint):
    texture = paint(np.random.default_rng(1)).texture
    assert texture.dtype == np.uint8 and texture.ndim == 3 and texture.shape[2] == 3
    assert texture.std() > 1
    np.testing.assert_array_equal(texture, paint(np.random.default_rng(1)).texture)


def test_road_lines_are_where_they_should_be():
    texture = surfaces.road(
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
    cells = [surfaces.atlas_uv(i) for i in range(surfaces.ATLAS**2)]
    centres = {(round((u0 + u1) * 2, 1), round((v0 + v1) * 2, 1)) for u0, v0, u1, v1 in cells}
    assert len(centres) == len(cells)
    assert cells[0][3] > cells[-1][3], "the first picture must be at the top"
