"""Crop positions, the effect of image transforms on intrinsics, depth from disparity and lidar.

Functions named `..._map` return the homogeneous 3x3 map from old to new pixel coordinates.
Intrinsics transform by `pixel_map @ intrinsics`, and maps of successive steps multiply. Integer
coordinates are pixel centres; (0, 0) is the top-left pixel (OpenCV's and KITTI's convention).
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64

from diffdepth_jax.errors import DataError

KB_SIZE = (352, 1216)  # KITTI benchmark images, which give the kb crop its name
NYU_ROWS = 240  # DiffusionDepth's release resizes NYU to this height


def kb_corner(size: tuple[int, int]) -> tuple[int, int]:
    """(top, left) of the bottom 352 rows and middle 1216 columns of a KITTI frame (BTS, AdaBins).

    Raises:
        DataError: if a frame of `size` is smaller.
    """
    if size[0] < KB_SIZE[0] or size[1] < KB_SIZE[1]:
        raise DataError(
            f"a frame of {size[0]}x{size[1]} is smaller than the kb crop of "
            f"{KB_SIZE[0]}x{KB_SIZE[1]}"
        )
    return size[0] - KB_SIZE[0], (size[1] - KB_SIZE[1]) // 2


def size_of_rows(size: tuple[int, int], rows: int) -> tuple[int, int]:
    """(height, width) of a frame of `size` resized to `rows` with its aspect ratio kept."""
    return rows, int(rows * size[1] / size[0])


def crop_map(top: int, left: int) -> Float64[np.ndarray, "3 3"]:
    """Crop whose top-left pixel was (row `top`, column `left`)."""
    return _map([1, 0, -left], [0, 1, -top])


def flip_map(width: int) -> Float64[np.ndarray, "3 3"]:
    """Horizontal flip of an image of `width` pixels."""
    return _map([-1, 0, width - 1], [0, 1, 0])


def resize_map(size: tuple[int, int], new_size: tuple[int, int]) -> Float64[np.ndarray, "3 3"]:
    """Resize from `size` to `new_size`, both (height, width), with image borders aligned."""
    y, x = new_size[0] / size[0], new_size[1] / size[1]
    return _map([x, 0, (x - 1) / 2], [0, y, (y - 1) / 2])


def rotation_map(size: tuple[int, int], degrees: float) -> Float64[np.ndarray, "3 3"]:
    """Counter-clockwise rotation about the centre of an image of `size` (height, width).

    This is a camera roll: the resulting intrinsics are no longer upper triangular, but still map
    camera coordinates to pixels.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = (size[0] - 1) / 2, (size[1] - 1) / 2
    return _map(
        [cosine, sine, x - cosine * x - sine * y],
        [-sine, cosine, y + sine * x - cosine * y],
    )


def disparity_depth(
    disparity: Float[np.ndarray, "h w"], focal_baseline: float
) -> Float32[np.ndarray, "h w"]:
    """Depth in metres of a rectified stereo pair: focal length * baseline / disparity.

    Args:
        disparity: pixels; values that are not positive (0, negative, NaN) are unmeasured.
        focal_baseline: focal length in pixels times baseline in metres.

    Returns:
        Depth, 0 where unmeasured.
    """
    measured = disparity > 0
    return np.where(measured, focal_baseline / np.where(measured, disparity, 1), 0).astype(
        np.float32
    )


def rigid_transform(
    rotation: Sequence[float | int], translation: Sequence[float | int]
) -> Float64[np.ndarray, "4 4"]:
    """Homogeneous matrix of a pose: unit quaternion (w, x, y, z) and translation in metres.

    Other quaternions are normalised.

    Raises:
        ValueError: if there are not four and three numbers, or the quaternion is zero.
    """
    if len(rotation) != 4 or len(translation) != 3 or not any(rotation):
        raise ValueError(
            f"a pose is a quaternion (w, x, y, z) and a translation (x, y, z), not {rotation} and "
            f"{translation}"
        )
    w, x, y, z = np.asarray(rotation, np.float64) / np.linalg.norm(rotation)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = translation
    return matrix


def transform_points(
    matrix: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "n 3"]
) -> Float64[np.ndarray, "n 3"]:
    """Transforms points from one coordinate frame to another, in float64."""
    matrix = matrix.astype(np.float64)
    # In this order, as BLAS takes a hundred times as long for [n 3] @ [3 3].
    return (matrix[:3, :3] @ points.T.astype(np.float64) + matrix[:3, 3:]).T


def projected_depth(
    points: Float[np.ndarray, "n 3"],
    intrinsics: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    *,
    rule: Literal["nearest", "devkit"] = "nearest",
) -> Float32[np.ndarray, "h w"]:
    """Sparse depth map of a point cloud.

    Args:
        points: metres in camera coordinates (x right, y down, z forward).
        intrinsics: the camera matrix, in pixels.
        size: (height, width) of the map.
        rule: which pixel a point falls on, and which of several points a pixel keeps. `nearest`
            uses all points in front of the camera, the pixel with the nearest centre, and the point
            closest to the camera. `devkit` follows nuScenes' devkit and md4all: only points beyond
            1 m and more than 1 pixel inside the image, truncated coordinates, and the last point of
            the cloud.

    Returns:
        z of the points; 0 at pixels without a point.
    """
    height, width = size
    points = points[points[:, 2] > (1.0 if rule == "devkit" else 0.0)].astype(np.float64)
    depth = points[:, 2]
    homogeneous = intrinsics.astype(np.float64) @ points.T
    with np.errstate(over="ignore", invalid="ignore"):  # Such points are outside the image, or NaN.
        x, y = homogeneous[:2] / depth[None]
    if rule == "devkit":
        order = np.flatnonzero((x > 1) & (x < width - 1) & (y > 1) & (y < height - 1))
    else:
        x, y = np.floor(x + 0.5), np.floor(y + 0.5)
        order = np.flatnonzero((x >= 0) & (x < width) & (y >= 0) & (y < height))
        order = order[np.argsort(-depth[order], kind="stable")]
    depth_map = np.zeros(size, np.float32)
    # For several values at one pixel the last one wins: with `nearest`, that of the nearest point.
    depth_map[y[order].astype(int), x[order].astype(int)] = depth[order]
    return depth_map


def _map(row_x: list, row_y: list) -> Float64[np.ndarray, "3 3"]:
    return np.array([row_x, row_y, [0, 0, 1]], np.float64)
