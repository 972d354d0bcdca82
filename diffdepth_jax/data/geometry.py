"""Where crops lie, and what cropping, resizing, flipping and rotating does to intrinsics.

A function `..._map` returns the homogeneous 3x3 map from old to new pixel coordinates. Intrinsics
follow it by `pixel_map @ intrinsics`, and maps of successive steps multiply. Integer coordinates
are pixel centres, (0, 0) is the top-left one (OpenCV's and KITTI's convention).
"""

import math

import numpy as np
from jaxtyping import Float64

KB_SIZE = (352, 1216)  # of KITTI's benchmark images; the kb crop is called after it
NYU_ROWS = 240  # to which DiffusionDepth's release resizes NYU


def kb_corner(size: tuple[int, int]) -> tuple[int, int]:
    """(top, left) of the lowest 352 rows and middle 1216 columns of a KITTI frame (BTS, AdaBins).

    Raises:
      ValueError: if a frame of `size` is smaller.
    """
    if size[0] < KB_SIZE[0] or size[1] < KB_SIZE[1]:
        raise ValueError(
            f"a frame of {size[0]}x{size[1]} is smaller than the kb crop of "
            f"{KB_SIZE[0]}x{KB_SIZE[1]}"
        )
    return size[0] - KB_SIZE[0], (size[1] - KB_SIZE[1]) // 2


def size_of_rows(size: tuple[int, int], rows: int) -> tuple[int, int]:
    """(height, width) of a frame of `size` resized to `rows`, its aspect ratio kept."""
    return rows, int(rows * size[1] / size[0])


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
