"""Reading images and depth maps from files, with errors that name the file and the remedy."""

import contextlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8
from PIL import Image, ImageOps

from diffdepth_jax.errors import (
    DataError,
    FileError,
    MissingFileError,
    MissingPackageError,
    UserError,
    naming_file,
)

# Suffixes that count as images or depth maps: folders also hold notes and `Thumbs.db`.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
DEPTH_SUFFIXES = (".png", ".npy", ".exr")
# What Pillow raises for damaged images, besides OSError; for `reading`.
DAMAGED_IMAGE = (SyntaxError, ValueError, EOFError, struct.error)

_PIECE = 1 << 20  # characters of a large JSON file to read at once
_BETWEEN_ROWS = re.compile(r"[\s,]*")


def read_image(path: str | Path, *, upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an 8-bit image file as RGB.

    Args:
        path: the file.
        upright: rotate it as its EXIF data say, like image viewers; its depth map is not rotated.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if the file is damaged or holds more than 8 bits per channel.
    """
    return as_rgb(_open(path), str(path), upright=upright)


def as_rgb(image: Image.Image, name: str, *, upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """A Pillow image as RGB; errors use `name`. Otherwise like `read_image`."""
    if image.mode.startswith("I") or image.mode == "F":
        raise DataError(
            f"{name} has more than 8 bits per pixel (Pillow mode {image.mode!r}): it looks like a "
            "depth map, but a colour image is expected"
        )
    if upright:
        image = ImageOps.exif_transpose(image)
    return np.asarray(image.convert("RGB"))


def read_depth_png(
    path: str | Path, scale: float = 256.0, dtype: type[np.floating] = np.float32
) -> Float[np.ndarray, "h w"]:
    """Reads a 16-bit depth PNG in metres; 0 stays 0 and means unmeasured.

    Args:
        path: the file.
        scale: stored units per metre: 256 in KITTI (devkit of the depth benchmark), 1000 for
            millimetres (NYU sync files).
        dtype: dtype of the result; float64 if metrics are computed from it.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if the file is damaged or not a single-channel 16-bit image.
    """
    image = _open(path)
    # Pillow opens 16-bit PNG as "I;16", older versions as "I".
    if image.mode not in ("I;16", "I;16B", "I"):
        raise DataError(
            f"{path} is not a 16-bit depth map (Pillow mode {image.mode!r}): depth must be stored "
            f"as uint16 = metres * {scale:g} in one channel. An 8-bit or colour image no longer "
            "has metres: download or export the original again"
        )
    return np.asarray(image).astype(dtype) / dtype(scale)


def read_h5(path: str | Path, names: tuple[str, ...], entry: int | None = None) -> list[np.ndarray]:
    """Reads datasets from an HDF5 file.

    Args:
        path: the file.
        names: names of the datasets.
        entry: read only this entry along the first axis; None reads everything.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if the file is damaged or lacks one of the `names` or the entry.
    """
    import h5py  # imported here, as scoring saved PNG depth maps must not need it

    # For damaged tables within the file h5py raises KeyError or RuntimeError.
    with reading(path, KeyError, RuntimeError), h5py.File(path, "r") as file:
        absent = [name for name in names if name not in file]
        if absent:
            raise DataError(f"{path} has no dataset {absent[0]!r}; it has {sorted(file)}")
        try:
            return [file[name][() if entry is None else entry] for name in names]
        except IndexError as error:
            raise DataError(f"{path} has no entry {entry}: it is shorter than its list") from error


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if it is not valid JSON.
    """
    # A thousand nested brackets raise RecursionError.
    with reading(path, ValueError, RecursionError):
        return json.loads(Path(path).read_bytes())


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object per line.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if a line is not a JSON object; gives its number.
    """
    with naming_file(path, "read"):
        lines = Path(path).read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not a JSON object but {str(row)[:200]}")
        rows.append(row)
    return rows


def read_condition(path: str | Path) -> str:
    """The condition (weather and light) named in a rendered scene's `condition.json`.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if it is not valid JSON, or names no condition.
    """
    named = read_json(path)
    if not isinstance(named, dict) or not isinstance(named.get("condition"), str):
        raise DataError(f'{path} must name a condition, for example {{"condition": "mirror"}}')
    return named["condition"]


def read_json_rows(path: str | Path, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields the named fields of the objects in a JSON list; files can have 2 GB.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if it is not a JSON list of objects, is truncated, or an object lacks a field.
    """
    decode = json.JSONDecoder().raw_decode
    with (
        reading(path, RecursionError),
        open(path, encoding="utf-8", errors="replace") as file,
    ):
        text = file.read(_PIECE).lstrip()
        readable, position = text.startswith("["), 1
        while readable:
            between = _BETWEEN_ROWS.match(text, position)
            position = position if between is None else between.end()
            try:
                row, position = decode(text, position)
            except json.JSONDecodeError:
                if text.startswith("]", position):
                    return
                # The object continues in the next piece; none is as long as a piece.
                more = file.read(_PIECE)
                readable = bool(more) and len(text) - position < _PIECE
                text, position = text[position:] + more, 0
                continue
            try:
                yield {field: row[field] for field in fields}
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: {str(row)[:200]} has no field {error}: wrong or damaged table"
                ) from error
    raise DataError(f"{path} is not a JSON list of objects, or is truncated: download it again")


def read_calibration(
    path: str | Path, key: str, shape: tuple[int, int]
) -> Float64[np.ndarray, "rows columns"]:
    """Reads a matrix from a text file with lines `KEY: number number ...` (KITTI's calibration).

    Args:
        path: the file.
        key: for example `P_rect_02`.
        shape: (rows, columns); the numbers are row by row.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if the key is missing or does not have that many finite numbers.
    """
    for line in read_text(path).splitlines():
        name, _, values = line.partition(":")
        if name.strip() == key:
            return numbers(values, shape, f"{path}, {key}")
    raise DataError(f"{path} has no {key}: wrong or damaged calibration file")


def numbers(text: str, shape: tuple[int, ...], name: str) -> Float64[np.ndarray, "..."]:
    """Parses an array of numbers from text; errors use `name`.

    Raises:
        DataError: if the text is not `shape` finite numbers.
    """
    try:
        values = np.array([float(word) for word in text.split()], np.float64)
    except ValueError as error:
        raise DataError(f"{name}: {error}; {np.prod(shape)} numbers were expected") from error
    if values.size != np.prod(shape) or not np.isfinite(values).all():
        raise DataError(
            f"{name}: {np.prod(shape)} finite numbers were expected, found {text.split()}"
        )
    return values.reshape(shape)


def read_exr(path: str | Path) -> Float32[np.ndarray, "h w"]:
    """Reads one channel of an OpenEXR file: `Y`, `Z` or `R` if present, otherwise the first.

    Values are as stored (ClearGrasp: half floats in metres, NaN or 0 where unmeasured).

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if the file is damaged or not an OpenEXR file.
        MissingPackageError: if the package OpenEXR, an optional dependency, is not installed.
    """
    try:
        import OpenEXR  # imported here, as only few data sets need this extra
    except ImportError as error:
        raise MissingPackageError(
            f"reading {path} needs the package OpenEXR: pip install 'diffdepth_jax[exr]'"
        ) from error
    # A file with damaged pixels has no parts.
    with (
        reading(path, RuntimeError, ValueError),
        OpenEXR.File(str(path), separate_channels=True) as file,
    ):
        channels = file.channels()
        name = next((name for name in "YZR" if name in channels), min(channels))
        return channels[name].pixels.astype(np.float32)


def read_npy(path: str | Path) -> np.ndarray:
    """Reads an array of numbers from a `.npy` file.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if the file is damaged, is an archive, or holds Python objects.
    """
    # Damaged headers raise undocumented errors, such as `TokenError`.
    with reading(path, Exception), open(path, "rb") as file:
        begin = file.read(len(np.lib.format.MAGIC_PREFIX))
        if begin != np.lib.format.MAGIC_PREFIX:
            archive = begin.startswith(b"PK")
            what = "an archive of arrays (.npz)" if archive else "not a .npy file, or damaged"
            raise DataError(f"{path} cannot be read as a single array: it is {what}")
        file.seek(0)
        return np.load(file, allow_pickle=False)


def read_depth_array(
    path: str | Path, png_scale: float | None, dtype: type[np.floating] = np.float32
) -> Float[np.ndarray, "h w"]:
    """Reads depth in metres from a 16-bit PNG, a `.npy` or an EXR file.

    Args:
        path: the file; a `.npy` must be floating point [h w], [h w 1] or [1 h w].
        png_scale: stored units per metre of a PNG (see `read_depth_png`); None if unknown. Ignored
            for `.npy` and EXR, which hold metres.
        dtype: dtype of the result.

    Returns:
        Depth as stored: unmeasured pixels are 0 in a PNG, often NaN or infinity in other formats.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if it is damaged, has a different format, holds integers where metres are
            expected, or is a PNG and `png_scale` is None.
    """
    _require(path)
    suffix = Path(path).suffix.lower()
    if suffix == ".exr":
        return read_exr(path).astype(dtype)
    if suffix == ".npy":
        depth = read_npy(path)
        if depth.ndim == 3 and 1 in (depth.shape[0], depth.shape[-1]):
            depth = depth.squeeze(-1 if depth.shape[-1] == 1 else 0)
        if depth.ndim != 2 or depth.dtype.kind != "f":
            raise DataError(
                f"{path} holds {depth.dtype} {list(depth.shape)}; a .npy depth map must be "
                "floating-point metres [h w]"
            )
        return depth.astype(dtype)
    if suffix != ".png":
        raise DataError(
            f"{path} is not a depth map: its suffix must be one of {', '.join(DEPTH_SUFFIXES)}"
        )
    if png_scale is None:
        raise DataError(
            f"{path}: a PNG does not state its unit; set depth_scale to the stored units per metre "
            "(1000 for millimetres, 256 for KITTI)"
        )
    return read_depth_png(path, png_scale, dtype)


def read_mat(path: str | Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """Reads variables from a MATLAB file, version 4 to 7.2 (7.3 is HDF5: use `read_h5`).

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if the file is damaged or lacks one of the `names`.
    """
    import scipy.io  # imported here, as it takes half a second

    # SciPy's errors for damaged files are undocumented.
    with reading(path, Exception):
        variables = scipy.io.loadmat(path, variable_names=names)
        known = [name for name, *_ in scipy.io.whosmat(path)]
    if absent := [name for name in names if name not in variables]:
        raise DataError(f"{path} has no variable {absent[0]!r}; it has {sorted(known)}")
    return [variables[name] for name in names]


def read_labels(path: str | Path, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Reads a single-channel 8-bit image of class labels or a mask.

    Args:
        path: the file.
        size: (height, width) of the corresponding image.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if the file is damaged, in colour, deeper than 8 bits or of a different size.
    """
    image = _open(path)
    if image.mode not in ("L", "P", "1"):
        raise DataError(
            f"{path} is not a label map (Pillow mode {image.mode!r}): labels must be "
            "single-channel 8-bit PNGs, not colour images"
        )
    labels = np.asarray(image, np.uint8)
    if labels.shape != size:
        raise DataError(
            f"{path} is {_size(labels)}, but its image is {size[0]}x{size[1]} (height x width): "
            "they must belong to the same frame"
        )
    return labels


def read_categories(path: str | Path, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Reads a material map with Booster's classes 0 to 3; 2 and 3 are transparent or mirrors.

    Arguments and errors as in `read_labels`, and DataError for other classes.
    """
    categories = read_labels(path, size)
    if categories.max(initial=0) > 3:
        raise DataError(
            f"{path} has class {categories.max()}, but material classes are 0 to 3: it is another "
            "mask"
        )
    return categories


def read_numbers(path: str | Path, shape: tuple[int, ...]) -> Float64[np.ndarray, "..."]:
    """Reads an array from a text file that only has its numbers, row by row.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if it does not hold exactly `shape` finite numbers.
    """
    return numbers(read_text(path), shape, str(path))


def read_points(path: str | Path, columns: int) -> Float32[np.ndarray, "n columns"]:
    """Reads a lidar scan: a file of float32 numbers only, point after point.

    Args:
        path: the file (`.bin`).
        columns: numbers per point: 4 in KITTI, 5 in nuScenes; the first three are x, y and z.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if its length is not a multiple of a point's.
    """
    with reading(path):
        data = Path(path).read_bytes()
    if len(data) % (4 * columns):
        raise DataError(
            f"{path} has {len(data)} bytes, which is not a multiple of {4 * columns} ({columns} "
            "float32 per point): truncated or another format, download it again"
        )
    return np.frombuffer(data, np.float32).reshape(-1, columns)


def check_sample(
    image: UInt8[np.ndarray, "h w 3"], depth: np.ndarray, image_path: object, depth_path: object
) -> None:
    """Rejects a depth map that does not match its image or has impossible values.

    Raises:
        DataError: if the sizes differ, or any depth is NaN, infinite or negative.
    """
    if image.shape[:2] != depth.shape:
        raise DataError(
            f"image and depth differ in size: {image_path} is {_size(image)}, {depth_path} is "
            f"{_size(depth)} (height x width); they must belong to the same frame"
        )
    wrong = ~(np.isfinite(depth) & (depth >= 0))
    if wrong.any():
        raise DataError(
            f"{depth_path} has {int(wrong.sum())} depth values that are NaN, infinite or negative "
            "(0 marks unmeasured pixels): repair or exclude this file"
        )


def missing(paths: Iterable[Path]) -> list[Path]:
    """The paths that do not exist; lists each folder once instead of checking every file."""
    folders: dict[Path, set[str]] = {}

    def absent(path: Path) -> bool:
        if path.parent not in folders:
            exists = path.parent.is_dir()
            with naming_file(path.parent, "listed"):
                folders[path.parent] = set(os.listdir(path.parent)) if exists else set()
        return path.name not in folders[path.parent]

    return [path for path in paths if absent(path)]


@contextlib.contextmanager
def reading(path: str | Path, *damaged: type[Exception]) -> Iterator[None]:
    """Turns any error from reading a file into one that names the file.

    Args:
        path: the file.
        damaged: exceptions that the reading library raises for damaged files, besides an OSError
            that does not come from the system.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or the system refuses to read it.
        DataError: for `damaged`.
    """
    _require(path)
    try:
        with naming_file(path, "read"):
            try:
                yield
            except OSError as error:
                if isinstance(error, UserError) or error.errno is not None:
                    raise
                raise _damaged(path, error) from error  # raised by a library
    except UserError:
        raise
    except damaged as error:
        raise _damaged(path, error) from error


def read_text(path: str | Path) -> str:
    """Reads a text file; bytes that are not UTF-8 are replaced.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
    """
    with reading(path):
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _open(path: str | Path) -> Image.Image:
    try:
        with reading(path, *DAMAGED_IMAGE), Image.open(path) as image:
            image.load()
            return image
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large to decode ({error}): downscale it first") from error


def _require(path: str | Path) -> None:
    with naming_file(path, "read"):
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(
                f"{path} does not exist: check the root folder and the file list"
            ) from error
        except ValueError as error:  # a null character
            raise DataError(f"{path!r} is not a valid file name: {error}") from error
    if not stat.S_ISREG(mode):
        raise FileError(f"{path} cannot be read: it is a folder or a device")


def _damaged(path: str | Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({error}): truncated or damaged, download it again")


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
