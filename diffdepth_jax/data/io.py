"""Reading images and depth maps from files, with errors that name the file and the remedy."""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps


def read_image(path: str | Path, *, upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an 8-bit image file as RGB.

    Args:
        path: the file.
        upright: turn it as its EXIF data say, as viewers do; a depth map beside it is not turned.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds more than 8 bits per channel.
    """
    return as_rgb(_open(path), str(path), upright=upright)


def as_rgb(image: Image.Image, name: str, *, upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """A Pillow image as RGB; `name` is how errors call it. Otherwise as `read_image`."""
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(
            f"{name} has more than 8 bits per pixel (Pillow mode {image.mode!r}): it looks like a "
            "depth map where a colour image is expected"
        )
    if upright:
        image = ImageOps.exif_transpose(image)
    return np.asarray(image.convert("RGB"))


def read_depth_png(
    path: str | Path, scale: float = 256.0, dtype: type[np.floating] = np.float32
) -> Float[np.ndarray, "h w"]:
    """Reads a 16-bit depth PNG as metres; 0 stays 0 and means that nothing was measured.

    Args:
      path: the file.
      scale: stored units per metre: 256 in KITTI (devkit of the depth benchmark), 1000 for
        millimetres (NYU sync files).
      dtype: of the result; float64 where metrics are computed of it.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged or is not a 16-bit image of one channel.
    """
    image = _open(path)
    # Pillow opens 16-bit PNG as "I;16" and older versions as "I".
    if image.mode not in ("I;16", "I;16B", "I"):
        raise ValueError(
            f"{path} is not a 16-bit depth map (Pillow mode {image.mode!r}): depth is stored as "
            f"uint16 = metres * {scale:g} in one channel; an 8-bit or colour picture of the depth "
            "has lost the metres, so fetch or write the original again"
        )
    return np.asarray(image).astype(dtype) / dtype(scale)


def read_h5(path: str | Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """Reads whole data sets of an HDF5 file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged or lacks one of the `names`.
    """
    import h5py  # Only here: scoring saved depth maps reads PNG through this module.

    _require(path)
    try:
        with h5py.File(path, "r") as file:
            absent = [name for name in names if name not in file]
            if absent:
                raise ValueError(f"{path} has no data set {absent[0]!r}; it holds {sorted(file)}")
            return [file[name][()] for name in names]
    except OSError as error:
        raise _damaged(path, error) from error


def check_sample(
    image: UInt8[np.ndarray, "h w 3"], depth: np.ndarray, image_path: object, depth_path: object
) -> None:
    """Refuses a depth map that does not fit its image or holds what no depth can be.

    Raises:
      ValueError: if the sizes differ, or depth is NaN, infinite or negative somewhere.
    """
    if image.shape[:2] != depth.shape:
        raise ValueError(
            f"image and depth differ in size: {image_path} is {_size(image)}, {depth_path} is "
            f"{_size(depth)} (height x width); they must belong to one frame"
        )
    wrong = ~(np.isfinite(depth) & (depth >= 0))
    if wrong.any():
        raise ValueError(
            f"{depth_path} has {int(wrong.sum())} depth values that are NaN, infinite or negative "
            "(0 marks what was not measured): repair or leave out this file"
        )


def missing(paths: Iterable[Path]) -> list[Path]:
    """The paths that do not exist; lists each folder once instead of asking file by file."""
    folders: dict[Path, set[str]] = {}

    def absent(path: Path) -> bool:
        if path.parent not in folders:
            exists = path.parent.is_dir()
            folders[path.parent] = set(os.listdir(path.parent)) if exists else set()
        return path.name not in folders[path.parent]

    return [path for path in paths if absent(path)]


def _open(path: str | Path) -> Image.Image:
    _require(path)
    try:
        with Image.open(path) as image:
            image.load()
            return image
    # Pillow tells of broken files in all these ways.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise _damaged(path, error) from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} is too large to be decoded ({error}): make it smaller first"
        ) from error


def _require(path: str | Path) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: check the root folder and the file list")


def _damaged(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read ({error}): truncated or damaged, fetch it again")


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
