"""Cameras, and point clouds from depth maps."""

import io
import math

import numpy as np
import pytest

from diffdepth_jax.data import geometry
from diffdepth_jax.errors import ConfigError, DataError, MissingFileError
from diffdepth_jax.inference import point_cloud
from diffdepth_jax.inference.point_cloud import Camera
from tests.inference.ply import read_ply


def test_the_image_borders_are_at_half_the_field_of_view():
    rays = np.linalg.inv(Camera(field_of_view=80).matrix(30, 50)) @ [
        [-0.5, 49.5, 24.5],
        [14.5, 14.5, 14.5],
        [1, 1, 1],
    ]
    degrees = np.degrees(np.arctan2(rays[0], rays[2]))
    np.testing.assert_allclose(degrees, [-40, 40, 0], atol=1e-9)
    np.testing.assert_allclose(rays[1], 0, atol=1e-12)
    assert "assumed" in Camera().described() and "60 degrees" in Camera().described()


def test_points_project_to_their_pixels_with_their_depth():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 50, (20, 30)).astype(np.float32)
    depth[3, 4:8] = 0, -1, np.nan, np.inf
    intrinsics = Camera((40.0, 45.0, 13.0, 8.5)).matrix(20, 30)
    points, valid = point_cloud.points(depth, intrinsics)
    assert points.dtype == np.float32 and len(points) == valid.sum() == 20 * 30 - 4
    projected = geometry.projected_depth(points, intrinsics, (20, 30))
    np.testing.assert_allclose(projected, np.where(valid, depth, 0), rtol=1e-6)
    row, column = 15, 2
    point = points[valid[:row].sum() + column]
    expected = np.array([(column - 13) / 40, (row - 8.5) / 45, 1]) * depth[row, column]
    np.testing.assert_allclose(point, expected, rtol=1e-6)


def test_a_file_holds_points_colours_and_comments():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(7, 3)).astype(np.float32)
    colours = rng.integers(0, 256, (7, 3), np.uint8)
    file = io.BytesIO()
    point_cloud.write_ply(file, points, colours, ["one", "and two"])
    vertices, comments = read_ply(file.getvalue())
    np.testing.assert_array_equal(np.stack([vertices[axis] for axis in "xyz"], -1), points)
    stored = np.stack([vertices[name] for name in ("red", "green", "blue")], -1)
    np.testing.assert_array_equal(stored, colours)
    assert comments[:2] == ["one", "and two"]


@pytest.mark.parametrize("degrees", [0, -5, 180, math.nan])
def test_impossible_fields_of_view_are_refused(degrees):
    with pytest.raises(ConfigError, match="between 0 and 180"):
        Camera(field_of_view=degrees)


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (1, -1, 2, 3), (1, 1, math.inf, 3)])
def test_impossible_intrinsics_are_refused(numbers):
    with pytest.raises(ConfigError, match="fx and fy above 0"):
        Camera(numbers)


def test_intrinsics_for_another_image_size_are_refused():
    camera = Camera((700, 700, 600, 180))
    camera.matrix(370, 1226)
    with pytest.raises(ConfigError, match="600,180 do not fit an image of 64x208 pixels"):
        camera.matrix(64, 208)


@pytest.mark.parametrize(
    "lines, expected",
    [
        ("P_rect_02: 7 0 6 45 0 8 5 -1 0 0 1 0\nP_rect_03: 1 0 1 1 0 1 1 1 0 0 1 0", (7, 8, 6, 5)),
        ("P0: 1 0 1 1 0 1 1 1 0 0 1 0\nP2: 7 0 6 45 0 8 5 -1 0 0 1 0\n", (7, 8, 6, 5)),
    ],
)
def test_intrinsics_come_from_numbers_or_kitti_files(tmp_path, lines, expected):
    (tmp_path / "calib.txt").write_text(lines)
    assert point_cloud.read_intrinsics(str(tmp_path / "calib.txt")) == expected
    assert point_cloud.read_intrinsics("7,8, 6.0,5") == expected


def test_other_intrinsics_are_refused_with_a_remedy(tmp_path):
    (tmp_path / "notes.txt").write_text("P4: 1 2 3\n")
    with pytest.raises(DataError, match=r"notes\.txt has none of P_rect_02, P2.*fx,fy,cx,cy"):
        point_cloud.read_intrinsics(str(tmp_path / "notes.txt"))
    with pytest.raises(ConfigError, match="'1,2,3' is not fx,fy,cx,cy"):
        point_cloud.read_intrinsics("1,2,3")
    with pytest.raises(MissingFileError, match="absent"):
        point_cloud.read_intrinsics(str(tmp_path / "absent"))
