import numpy as np
import pytest

from diffdepth_jax.typing import InputSpec


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_normalise(leading: tuple[int, ...]) -> None:
    spec = InputSpec(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    image = np.random.default_rng(0).integers(0, 256, (*leading, 4, 7, 3), dtype=np.uint8)
    for view in (image, image[..., ::-1, :]):
        normalised = spec.normalise(view)
        expected = (view / 255 - np.array(spec.mean)) / np.array(spec.std)
        np.testing.assert_allclose(normalised, expected, atol=1e-6)
        assert normalised.dtype == np.float32
