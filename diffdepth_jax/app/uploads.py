"""Reads uploaded images within limits, and refuses anything else with a one-line error."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffdepth_jax.data import io
from diffdepth_jax.errors import ConfigError, DataError, FileError

# Not every format that Pillow knows: for some, such as EPS, it runs other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")


@dataclass(frozen=True)
class Limits:
    """What an uploaded image may be.

    Attributes:
        megabytes: largest file, in units of 10^6 bytes.
        megapixels: largest image, in units of 10^6 pixels; checked before decoding, because a small
            file can hold a huge image.
        shrink_megapixels: larger images are shrunk before depth is predicted.
    """

    megabytes: float = 20.0
    megapixels: float = 50.0
    shrink_megapixels: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}; it must be positive")

    @property
    def num_bytes(self) -> int:
        """The size of the largest file, in bytes."""
        return int(self.megabytes * 1e6)


@dataclass(frozen=True)
class Upload:
    """An image that was accepted.

    Attributes:
        name: of the file, without its suffix.
        image: RGB, upright.
        original_size: height and width in the file, upright; `image` may be smaller.
    """

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    original_size: tuple[int, int]


def read(path: Path, limits: Limits) -> Upload:
    """Reads an image file of unknown origin.

    Raises:
        DataError, FileError: for a file that is no such image, or larger than the limits. The
            message names the file without its folder, which is the server's.
    """
    try:
        image = _read(path, limits)
    except (DataError, FileError) as error:
        raise type(error)(str(error).replace(str(path), path.name)) from error
    height, width = image.shape[:2]
    shrink = math.sqrt(height * width / (limits.shrink_megapixels * 1e6))
    if shrink > 1:
        size = max(1, int(width / shrink)), max(1, int(height / shrink))
        resized = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        image = np.asarray(resized)
    return Upload(path.stem, image, (height, width))


def _read(path: Path, limits: Limits) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with io.reading(path, *io.DAMAGED_IMAGE):
            num_bytes = path.stat().st_size
            if num_bytes > limits.num_bytes:
                raise DataError(
                    f"{path.name} has {num_bytes / 1e6:.1f} MB; at most {limits.megabytes:g} MB "
                    "are accepted"
                )
            with _open(path) as image:
                width, height = image.size
                if height * width > limits.megapixels * 1e6:
                    raise DataError(
                        f"{path.name} has {width} x {height} pixels; at most "
                        f"{limits.megapixels:g} megapixels are accepted: make it smaller first"
                    )
                return io.as_rgb(image, path.name, upright=True)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path.name} has far too many pixels; at most {limits.megapixels:g} megapixels are "
            "accepted: make it smaller first"
        ) from error


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        known = "JPEG, PNG, WebP, BMP, TIFF or PPM"
        raise DataError(f"{path.name} is not an image that can be read here: {known}") from error
