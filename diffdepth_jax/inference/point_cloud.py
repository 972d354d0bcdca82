"""Depth as a coloured point cloud, with the camera's intrinsics or an assumed field of view."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from diffdepth_jax.data import io
from diffdepth_jax.errors import ConfigError, DataError

FIELD_OF_VIEW = 60.0  # degrees, about that of a phone's main camera; a default
# The left colour camera in KITTI's calib_cam_to_cam.txt, and in the files of its object and
# odometry benchmarks.
_KITTI_KEYS = ("P_rect_02", "P2")


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera: its intrinsics, or an assumed horizontal field of view.

    Attributes:
        intrinsics: (fx, fy, cx, cy) in pixels of the upright image, after any rotation by EXIF
            data; integer coordinates are pixel centres, (0, 0) is the top-left pixel.
        field_of_view: degrees, from the left to the right border, with the principal point in the
            middle of the image and square pixels; unused with `intrinsics`.

    Raises:
        ConfigError: for impossible values.
    """

    intrinsics: tuple[float, float, float, float] | None = None
    field_of_view: float = FIELD_OF_VIEW

    def __post_init__(self) -> None:
        if not 0 < self.field_of_view < 180:
            raise ConfigError(
                f"the field of view is {self.field_of_view:g} degrees; it must be between 0 and 180"
            )
        if self.intrinsics is not None and not (
            np.isfinite(self.intrinsics).all() and min(self.intrinsics[:2]) > 0
        ):
            raise ConfigError(
                f"the intrinsics are {self.intrinsics}; they must be fx,fy,cx,cy in pixels, with "
                "fx and fy above 0"
            )

    def matrix(self, height: int, width: int) -> Float64[np.ndarray, "3 3"]:
        """Intrinsics of an image of that size.

        Raises:
            ConfigError: if the principal point is outside the image, as with intrinsics for a
                different size.
        """
        if self.intrinsics is None:
            focal = width / 2 / math.tan(math.radians(self.field_of_view) / 2)
            fx, fy, cx, cy = focal, focal, (width - 1) / 2, (height - 1) / 2
        else:
            fx, fy, cx, cy = self.intrinsics
        if not (-0.5 <= cx <= width - 0.5 and -0.5 <= cy <= height - 0.5):
            raise ConfigError(
                f"the intrinsics fx,fy,cx,cy={fx:g},{fy:g},{cx:g},{cy:g} do not fit an image of "
                f"{height}x{width} pixels, as the principal point would be outside: use those of "
                "images of this size"
            )
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])

    def described(self) -> str:
        """One line for the user, and for a file's comment."""
        if self.intrinsics is None:
            return f"assumed horizontal field of view: {self.field_of_view:g} degrees"
        return "given intrinsics: fx {:g}, fy {:g}, cx {:g}, cy {:g} pixels".format(
            *self.intrinsics
        )


def read_intrinsics(text: str) -> tuple[float, float, float, float]:
    """Reads (fx, fy, cx, cy) from "fx,fy,cx,cy", or from a KITTI calibration file.

    From a file, those of the left colour camera are used: `P_rect_02` or `P2`.

    Raises:
        ConfigError: if the text is neither four numbers nor the name of a file.
        DataError, FileError: if the file has no such camera, or cannot be read.
    """
    words = text.split(",")
    try:
        fx, fy, cx, cy = (float(word) for word in words)
    except ValueError:
        pass
    else:
        return fx, fy, cx, cy
    if len(words) > 1:
        raise ConfigError(f"{text!r} is not fx,fy,cx,cy: expected four numbers")
    content = io.read_text(text)
    for key in _KITTI_KEYS:
        if re.search(rf"^{key}:", content, re.MULTILINE):
            matrix = io.read_calibration(text, key, (3, 4))
            return matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    raise DataError(
        f"{text} has none of {', '.join(_KITTI_KEYS)}: it must be a KITTI calibration file; "
        "otherwise pass the numbers fx,fy,cx,cy"
    )


def points(
    depth: Float[np.ndarray, "h w"], intrinsics: Float[np.ndarray, "3 3"]
) -> tuple[Float32[np.ndarray, "n 3"], Bool[np.ndarray, "h w"]]:
    """Points of the pixels with depth, row by row, and a mask of these pixels.

    Args:
        depth: metres along the optical axis; pixels that are not finite and positive are left out.
        intrinsics: the image's intrinsics, in pixels.

    Returns:
        Metres in camera coordinates: right, down, forward.
    """
    valid = np.isfinite(depth) & (depth > 0)
    known = np.where(valid, depth, 0)
    rows, columns = np.arange(depth.shape[0])[:, None], np.arange(depth.shape[1])
    found = np.empty((*depth.shape, 3), np.float32)
    for axis, (of_column, of_row, of_one) in enumerate(np.linalg.inv(intrinsics)):
        found[..., axis] = (of_column * columns + of_row * rows + of_one) * known
    return found[valid], valid


def write_ply(
    file: BinaryIO,
    points: Float32[np.ndarray, "n 3"],
    colours: UInt8[np.ndarray, "n 3"],
    comments: Sequence[str] = (),
) -> None:
    """Writes points as binary PLY.

    Args:
        file: open for writing.
        points: in any unit.
        colours: RGB of the points.
        comments: one line each, ASCII.
    """
    fields = [(name, "<f4") for name in "xyz"]
    fields += [(name, "u1") for name in ("red", "green", "blue")]
    vertices = np.empty(len(points), fields)
    for axis, name in enumerate("xyz"):
        vertices[name] = points[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = colours[:, channel]
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment {comment}" for comment in comments]
    header += [f"element vertex {len(points)}"]
    header += [f"property {'float' if kind == '<f4' else 'uchar'} {name}" for name, kind in fields]
    file.write("\n".join([*header, "end_header\n"]).encode("ascii"))
    file.write(vertices.tobytes())
