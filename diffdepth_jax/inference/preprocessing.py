"""Converts images to a network's input, and its output back to the image's size."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffdepth_jax.data import io, resampling
from diffdepth_jax.errors import DataError
from diffdepth_jax.typing import InputSpec

_MOST_PIXELS = 32  # maximum input pixels, as a multiple of those at the network's preferred size

ImageLike = np.ndarray | Image.Image | str | os.PathLike


def read_image(source: ImageLike) -> np.ndarray:
    """uint8 RGB `[h, w, 3]` from an array, a Pillow image or a path, rotated according to EXIF
    data.

    Raises:
        DataError, MissingFileError: for a file or Pillow image that is not a valid image.
        ValueError, TypeError: for any other array or object.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3 or not source.size:
            raise ValueError(
                f"an image array must be uint8 RGB [h, w, 3], not {source.dtype} "
                f"{list(source.shape)}"
            )
        return source
    if isinstance(source, Image.Image):
        return io.as_rgb(source, "the Pillow image", upright=True)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"an image must be an array, a Pillow image or a path, not {type(source).__name__}"
        )
    return io.read_image(Path(source).expanduser(), upright=True)


def check_size(height: int, width: int, spec: InputSpec) -> None:
    """Rejects an image that would be enlarged beyond memory, such as a single row of pixels.

    Raises:
        DataError: with the size that it would be resized to.
    """
    if spec.size is None:
        return
    size = spec.input_size(height, width)
    if math.prod(size) > _MOST_PIXELS * math.prod(spec.size):
        raise DataError(
            f"an image of {height}x{width} pixels is too narrow for this network, whose input "
            f"would be {size[0]}x{size[1]}: crop or pad it"
        )


def by_size(
    sources: Sequence[ImageLike], batch_size: int
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Batches of images of equal size, with their list positions; few are in memory at once."""
    waiting: dict[tuple[int, ...], tuple[list[int], list[np.ndarray]]] = {}
    for index, source in enumerate(sources):
        image = read_image(source)
        indices, images = waiting.setdefault(image.shape, ([], []))
        indices.append(index)
        images.append(image)
        if len(images) == batch_size:
            yield waiting.pop(image.shape)
    yield from waiting.values()


def to_input(image: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Pads, resizes and normalises uint8 RGB [h, w, 3] to float32 input [h2, w2, 3]."""
    rows, columns = spec.margins(*image.shape[:2])
    size = spec.input_size(*image.shape[:2])
    if rows or columns:
        image = np.pad(image, ((rows, rows), (columns, columns), (0, 0)), mode="reflect")
    if size != image.shape[:2]:
        image = resampling.resize(image, size, spec.interpolation, align_corners=spec.align_corners)
    return spec.normalise(image)


def to_image_size(prediction: np.ndarray, size: tuple[int, int], spec: InputSpec) -> np.ndarray:
    """Resizes a result [h2, w2] to the image's size, float32 [h, w], and undoes padding."""
    (height, width), (rows, columns) = size, spec.margins(*size)
    padded = spec.padded_size(*size)
    if prediction.shape != padded:
        prediction = resampling.resize(
            prediction, padded, spec.output_interpolation, align_corners=spec.output_align_corners
        )
    prediction = prediction[rows : rows + height, columns : columns + width]
    return np.asarray(prediction, np.float32)
