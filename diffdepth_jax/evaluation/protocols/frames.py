"""Frames used by protocols: crops of an image and their inverse, and resizing.

All functions take arrays whose first two axes are rows and columns: uint8 images `[h, w, 3]` or
depth maps `[h, w]`.
"""

from typing import Literal

import numpy as np
from PIL import Image

from diffdepth_jax.data import geometry
from diffdepth_jax.data.geometry import KB_SIZE, NYU_ROWS
from diffdepth_jax.errors import DataError

Frame = Literal["full", "kb", "nyu_release", "robotcar"]
Size = tuple[int, int]

NYU_RELEASE_SIZE = (228, 304)
ROBOTCAR_SIZE = (960, 1280)
ROBOTCAR_ROWS = 768  # the rest shows the car's bonnet


def frame_size(frame: Frame, size: Size) -> Size:
    """Size of the result of `take` for an array of `size`."""
    sizes = {"kb": KB_SIZE, "nyu_release": NYU_RELEASE_SIZE}
    sizes["robotcar"] = (ROBOTCAR_ROWS, ROBOTCAR_SIZE[1])
    return size if frame == "full" else sizes[frame]


def take(array: np.ndarray, frame: Frame) -> np.ndarray:
    """The part of a full frame that a protocol uses.

    Args:
        array: image or depth map at its full size.
        frame: `full` keeps everything. `kb` is the KITTI benchmark crop, the bottom 352 rows and
            middle 1216 columns. `nyu_release` is DiffusionDepth's preprocessing of NYU: resizing to
            240 rows (Pillow's bilinear filter, for uint8 and float32), then a centre crop of
            228x304. `robotcar` keeps the top 768 of RobotCar's 960 rows (md4all).

    Raises:
        DataError: if the array is smaller than the crop, or not a RobotCar frame.
    """
    if frame == "full":
        return array
    size = array.shape[:2]
    rows, columns = frame_size(frame, size)
    if frame == "kb":
        top, left = geometry.kb_corner(size)
    elif frame == "robotcar":
        if size != ROBOTCAR_SIZE:
            raise DataError(
                f"the robotcar crop needs frames of {show(ROBOTCAR_SIZE)}, not {show(size)}"
            )
        top, left = 0, 0
    else:
        array = _resize_to_rows(array, NYU_ROWS)
        top, left = (array.shape[0] - rows) // 2, (array.shape[1] - columns) // 2
        if top < 0 or left < 0:
            raise DataError(
                f"a frame of {show(size)} is smaller than the {frame} crop of {rows}x{columns}"
            )
    return array[top : top + rows, left : left + columns]


def take_depth(depth: np.ndarray, frame: Frame) -> np.ndarray:
    """`take` for measured depth: 0 where resizing would mix in unmeasured pixels."""
    if frame != "nyu_release":
        return take(depth, frame)
    measured = take((depth > 0).astype(np.float32), frame)
    return np.where(measured > 1 - 1e-6, take(depth.astype(np.float32), frame), np.float32(0))


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes a uint8 image [h, w, 3] with Pillow's Lanczos filter, like md4all's input."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def quarter(array: np.ndarray) -> np.ndarray:
    """Every fourth pixel of every fourth row, starting with the first: OpenCV's nearest-neighbour
    resize by 0.25, used to evaluate on Booster (Depth4ToM)."""
    rows, columns = (4 * round(side / 4) for side in array.shape)
    return array[:rows:4, :columns:4]


def put_back(prediction: np.ndarray, size: Size) -> np.ndarray:
    """Puts a kb-cropped prediction back into its full frame of `size`, with NaN outside the crop,
    which counts as the nearest depth and is reported (BTS's script uses 0 there)."""
    rows, columns = prediction.shape
    top, left = geometry.kb_corner(size)
    full = np.full(size, np.nan, prediction.dtype)
    full[top : top + rows, left : left + columns] = prediction
    return full


def resize_nearest(depth: np.ndarray, size: Size) -> np.ndarray:
    """Nearest-neighbour resize with pixel centres aligned, so that sparse depth is never
    averaged."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, depth.shape, strict=True)
    )
    return depth[rows[:, None], columns[None, :]]


def fill_background(depth: np.ndarray) -> np.ndarray:
    """Fills zeros in depth [h, w] like the KITTI devkit fills sparse predictions.

    Within a row, a gap gets the smaller of the two depths next to it (for disparity, this would be
    the background), and the outermost depth extends to the border. Rows without depth above the
    first or below the last row with depth are copied from that row; empty rows in between stay 0.
    """
    known = depth != 0
    places = np.arange(depth.shape[1])
    left = np.maximum.accumulate(np.where(known, places, -1), axis=1)
    right = np.minimum.accumulate(np.where(known, places, len(places))[:, ::-1], axis=1)[:, ::-1]
    left, right = np.where(left < 0, right, left), np.where(right == len(places), left, right)
    present = known.any(axis=1)
    if not present.any():
        return depth
    left, right = (np.clip(index, 0, len(places) - 1) for index in (left, right))
    filled = np.minimum(
        np.take_along_axis(depth, left, axis=1), np.take_along_axis(depth, right, axis=1)
    )
    first, last = np.flatnonzero(present)[[0, -1]]
    filled[:first], filled[last + 1 :] = filled[first], filled[last]
    return filled


def show(shape: tuple[int, ...]) -> str:
    """Formats a size as height x width, for example "375x1242"."""
    return "x".join(map(str, shape))


def _resize_to_rows(array: np.ndarray, rows: int) -> np.ndarray:
    size = geometry.size_of_rows(array.shape[:2], rows)
    return np.asarray(Image.fromarray(array).resize(size[::-1], Image.Resampling.BILINEAR))
