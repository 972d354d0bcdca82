"""What cropping, resizing, flipping and rotating an image does to its intrinsics.

Every function here returns the homogeneous 3x3 map from old to new pixel coordinates. Intrinsics
follow it by `pixel_map @ intrinsics`, and maps of successive steps multiply. Integer coordinates
are pixel centres, (0, 0) is the top-left one (OpenCV's and KITTI's convention).
"""

import math

import numpy as np
from jaxtyping import Float64


def crop_map(top: int, left: int) -> Float64[np.ndarray, "3 3"]:
    """Crop whose top-left pixel was (row `top`, column `left`)."""
    return _map([1, 0, -left], [0, 1, -top])


def flip_map(width: int) -> Float64[np.ndarray, "3 3"]:
    """Mirror left and right in an image of `width` pixels."""
    return _map([-1, 0, width - 1], [0, 1, 0])


def resize_map(size: tuple[int, int], new_size: tuple[int, int]) -> Float64[np.ndarray, "3 3"]:
    """Resize from `size` to `new_size`, both (height, width), image borders onto image borders."""
    y, x = new_size[0] / size[0], new_size[1] / size[1]
    return _map([x, 0, (x - 1) / 2], [0, y, (y - 1) / 2])


def rotation_map(size: tuple[int, int], degrees: float) -> Float64[np.ndarray, "3 3"]:
    """Counter-clockwise turn about the centre of an image of `size` (height, width).

    It is a roll of the camera; intrinsics that went through it are not upper triangular any more,
    but still take camera coordinates to pixels.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = (size[0] - 1) / 2, (size[1] - 1) / 2
    return _map(
        [cosine, sine, x - cosine * x - sine * y],
        [-sine, cosine, y + sine * x - cosine * y],
    )


def _map(row_x: list, row_y: list) -> Float64[np.ndarray, "3 3"]:
    return np.array([row_x, row_y, [0, 0, 1]], np.float64)
