"""Procedural noise."""

import numpy as np
import pytest

from diffdepth_jax.scenes import materials


def test_noise_is_standardised_seamless_and_seeded():
    field = materials.noise(np.random.default_rng(3), 64, 96, slope=1.5)
    assert field.shape == (64, 96)
    assert abs(field.mean()) < 1e-9 and field.std() == pytest.approx(1.0)
    # The step across the seam is like any other.
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


def test_unknown_wall_is_named():
    with pytest.raises(ValueError, match="'straw'"):
        materials.wall(np.random.default_rng(0), "straw")
