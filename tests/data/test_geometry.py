"""Pixel maps against NumPy and Pillow moving a marked pixel."""

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data import geometry


def moved(pixel_map: np.ndarray, x: float, y: float) -> np.ndarray:
    return (pixel_map @ [x, y, 1])[:2]


def peak(image: np.ndarray) -> np.ndarray:
    """Centre of mass (x, y)."""
    rows, columns = np.indices(image.shape)
    return np.array([(columns * image).sum(), (rows * image).sum()]) / image.sum()


@pytest.fixture
def dot() -> np.ndarray:
    """A smooth blob about column 17, row 13."""
    rows, columns = np.indices((30, 50))
    return np.exp(-((rows - 13.0) ** 2 + (columns - 17.0) ** 2) / 8).astype(np.float32)


def test_crop(dot: np.ndarray) -> None:
    np.testing.assert_allclose(peak(dot[2:, 3:]), moved(geometry.crop_map(2, 3), *peak(dot)), 1e-3)


def test_flip(dot: np.ndarray) -> None:
    np.testing.assert_allclose(peak(dot[:, ::-1]), moved(geometry.flip_map(50), *peak(dot)), 1e-5)


def test_resize_keeps_pixel_centres(dot: np.ndarray) -> None:
    larger = np.asarray(Image.fromarray(dot).resize((150, 60), Image.Resampling.BICUBIC))
    expected = moved(geometry.resize_map((30, 50), (60, 150)), *peak(dot))
    np.testing.assert_allclose(peak(larger), expected, atol=0.01)
    np.testing.assert_allclose(moved(geometry.resize_map((30, 50), (60, 150)), -0.5, -0.5), -0.5)


@pytest.mark.parametrize("degrees", [20.0, -5.0])
def test_rotation(dot: np.ndarray, degrees: float) -> None:
    turned = np.asarray(Image.fromarray(dot).rotate(degrees, Image.Resampling.BILINEAR))
    expected = moved(geometry.rotation_map((30, 50), degrees), *peak(dot))
    np.testing.assert_allclose(peak(turned), expected, atol=0.02)


def test_the_kb_crop_lies_at_the_bottom_middle() -> None:
    assert geometry.kb_corner((375, 1242)) == (23, 13)
    assert geometry.kb_corner((370, 1227)) == (18, 5)
    assert geometry.kb_corner(geometry.KB_SIZE) == (0, 0)
    with pytest.raises(ValueError, match="352x1215 is smaller than the kb crop of 352x1216"):
        geometry.kb_corner((352, 1215))


def test_the_columns_of_a_resize_to_rows_are_truncated() -> None:
    assert geometry.size_of_rows((480, 640), 240) == (240, 320)
    assert geometry.size_of_rows((50, 91), 20) == (20, 36)
