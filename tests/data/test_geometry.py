"""Pixel maps against NumPy and Pillow, which must move a marked pixel to the same place."""

import math

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.data import geometry
from diffdepth_jax.errors import DataError


def moved(pixel_map: np.ndarray, x: float, y: float) -> np.ndarray:
    return (pixel_map @ [x, y, 1])[:2]


def peak(image: np.ndarray) -> np.ndarray:
    """Centre of mass (x, y)."""
    rows, columns = np.indices(image.shape)
    return np.array([(columns * image).sum(), (rows * image).sum()]) / image.sum()


@pytest.fixture
def dot() -> np.ndarray:
    """A smooth blob centred at column 17, row 13."""
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


def test_the_kb_crop_is_at_the_bottom_centre() -> None:
    assert geometry.kb_corner((375, 1242)) == (23, 13)
    assert geometry.kb_corner((370, 1227)) == (18, 5)
    assert geometry.kb_corner(geometry.KB_SIZE) == (0, 0)
    with pytest.raises(DataError, match=r"352x1215.*352x1216"):
        geometry.kb_corner((352, 1215))


def test_resizing_to_a_number_of_rows_truncates_the_columns() -> None:
    assert geometry.size_of_rows((480, 640), 240) == (240, 320)
    assert geometry.size_of_rows((50, 91), 20) == (20, 36)


def test_disparity_depth() -> None:
    disparity = np.array([[2.0, 0.0, -1.0], [np.nan, 0.5, 40.0]], np.float32)
    depth = geometry.disparity_depth(disparity, 100.0)
    np.testing.assert_array_equal(depth, np.array([[50, 0, 0], [0, 200, 2.5]], np.float32))


def test_rigid_transform() -> None:
    """A quarter turn about z takes x to y; quaternions of any length; bad ones are refused."""
    turn = geometry.rigid_transform([3.0, 0.0, 0.0, 3.0], [10.0, 20.0, 30.0])
    points = np.array([[1.0, 0, 0], [0, 0, 5.0]], np.float32)
    np.testing.assert_allclose(
        geometry.transform_points(turn, points), [[10, 21, 30], [10, 20, 35]], atol=1e-12
    )
    w, x, y, z = 0.5, -0.1, 0.7, 0.2
    rotation = geometry.rigid_transform([w, x, y, z], [0.0, 0.0, 0.0])[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation @ [x, y, z], [x, y, z], atol=1e-12)  # the axis stays put
    for bad in ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="a pose is a quaternion"):
            geometry.rigid_transform(bad, [0.0, 0.0, 0.0])


def literal_projection(
    points: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int], rule: str
) -> np.ndarray:
    depth_map = np.zeros(size)
    for point in points.astype(np.float64):
        z = point[2]
        if not z > (1 if rule == "devkit" else 0):
            continue
        x, y, _ = intrinsics.astype(np.float64) @ point / z
        if rule == "devkit":
            if 1 < x < size[1] - 1 and 1 < y < size[0] - 1:
                depth_map[int(y), int(x)] = z
            continue
        if not (abs(x) < 1e6 and abs(y) < 1e6):
            continue
        column, row = math.floor(x + 0.5), math.floor(y + 0.5)
        if 0 <= column < size[1] and 0 <= row < size[0]:
            nearest = depth_map[row, column] or np.inf
            depth_map[row, column] = min(nearest, z)
    return depth_map.astype(np.float32)


@pytest.mark.parametrize("rule", ["nearest", "devkit"])
def test_projected_depth_equals_a_literal_loop(rule: str) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([-9, -6, -5], [9, 6, 30], (4000, 3)).astype(np.float32)
    points[:3] = [[np.nan, 0, 1], [0, 0, 0], [5, 5, 1e-30]]
    intrinsics = np.array([[20, 0, 15.3], [0, 22, 9.8], [0, 0, 1]], np.float32)
    got = geometry.projected_depth(points, intrinsics, (20, 32), rule=rule)
    np.testing.assert_array_equal(got, literal_projection(points, intrinsics, (20, 32), rule))
    assert got.dtype == np.float32
    # Many points share a pixel; otherwise the order would not matter.
    assert 0.7 < (got > 0).mean() < 1 and (points[:, 2] > 1).sum() > 2 * (got > 0).sum()


def test_a_point_in_the_middle_of_a_pixel() -> None:
    """Integer coordinates are pixel centres; the devkit truncates."""
    points = np.array([[2.6, 3.6, 1.0], [5.2, 7.2, 2.0]])
    points[0] *= 1.5
    intrinsics = np.eye(3)
    assert np.argwhere(geometry.projected_depth(points, intrinsics, (9, 9))).tolist() == [[4, 3]]
    devkit = geometry.projected_depth(points, intrinsics, (9, 9), rule="devkit")
    assert np.argwhere(devkit).tolist() == [[3, 2]]
    assert devkit[3, 2] == 2.0
