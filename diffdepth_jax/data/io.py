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

# What a pattern means by any image or any depth map: folders hold notes and `Thumbs.db` as well.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
DEPTH_SUFFIXES = (".png", ".npy", ".exr")
# What Pillow raises for damaged images, besides OSError; for `reading`.
DAMAGED_IMAGE = (SyntaxError, ValueError, EOFError, struct.error)

_PIECE = 1 << 20  # characters of a large JSON file that are read at once
_BETWEEN_ROWS = re.compile(r"[\s,]*")


def read_image(path: str | Path, *, upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an 8-bit image file as RGB.

    Args:
        path: the file.
        upright: rotate it as its EXIF data say, as viewers do; its depth map is not rotated.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if the file is damaged or holds more than 8 bits per channel.
    """
    return as_rgb(_open(path), str(path), upright=upright)


def as_rgb(image: Image.Image, name: str, *, upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """A Pillow image as RGB; `name` stands for it in errors. Otherwise as `read_image`."""
    if image.mode.startswith("I") or image.mode == "F":
        raise DataError(
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
      dtype: of the result; float64 where metrics are computed from it.

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if the file is damaged or is not a 16-bit image of one channel.
    """
    image = _open(path)
    # Pillow opens 16-bit PNG as "I;16" and older versions as "I".
    if image.mode not in ("I;16", "I;16B", "I"):
        raise DataError(
            f"{path} is not a 16-bit depth map (Pillow mode {image.mode!r}): depth is stored as "
            f"uint16 = metres * {scale:g} in one channel; an 8-bit or colour picture of the depth "
            "has lost the metres, so fetch or write the original again"
        )
    return np.asarray(image).astype(dtype) / dtype(scale)


def read_h5(path: str | Path, names: tuple[str, ...], entry: int | None = None) -> list[np.ndarray]:
    """Reads data sets of an HDF5 file.

    Args:
      path: the file.
      names: of the data sets.
      entry: read only this entry along their first axis; None reads the whole.

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if the file is damaged or lacks one of the `names` or the entry.
    """
    import h5py  # Only here: scoring saved depth maps reads PNG through this module.

    # For damaged tables within the file h5py raises KeyError or RuntimeError.
    with reading(path, KeyError, RuntimeError), h5py.File(path, "r") as file:
        absent = [name for name in names if name not in file]
        if absent:
            raise DataError(f"{path} has no data set {absent[0]!r}; it holds {sorted(file)}")
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
    """The objects of a file with one JSON object a line.

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if a line is not one; names it.
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
    """The weather and light that a rendered scene's `condition.json` names.

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if it is not valid JSON, or names no condition.
    """
    named = read_json(path)
    if not isinstance(named, dict) or not isinstance(named.get("condition"), str):
        raise DataError(f'{path} must name a condition, as in {{"condition": "mirror"}}')
    return named["condition"]


def read_json_rows(path: str | Path, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The named fields of the objects in a JSON list, one by one, as files can have 2 GB.

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
            position = _BETWEEN_ROWS.match(text, position).end()
            try:
                row, position = decode(text, position)
            except json.JSONDecodeError:
                if text.startswith("]", position):
                    return
                # The object goes on in the next piece; none is as long as a piece.
                more = file.read(_PIECE)
                readable = bool(more) and len(text) - position < _PIECE
                text, position = text[position:] + more, 0
                continue
            try:
                yield {field: row[field] for field in fields}
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: {str(row)[:200]} has no field {error}: another table, or damaged"
                ) from error
    raise DataError(f"{path} is not a JSON list of objects, or truncated: fetch it again")


def read_calibration(
    path: str | Path, key: str, shape: tuple[int, int]
) -> Float64[np.ndarray, "rows columns"]:
    """Reads a matrix of a text file of lines `KEY: number number ...` (KITTI's calibration).

    Args:
      path: the file.
      key: as in `P_rect_02`.
      shape: (rows, columns); the numbers are row by row.

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if it has no such key, or not that many finite numbers.
    """
    for line in read_text(path).splitlines():
        name, _, values = line.partition(":")
        if name.strip() == key:
            return numbers(values, shape, f"{path}, {key}")
    raise DataError(f"{path} has no {key}: it is another calibration file, or damaged")


def numbers(text: str, shape: tuple[int, ...], name: str) -> Float64[np.ndarray, "..."]:
    """An array from its numbers in a text; `name` stands for it in errors.

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
    """Reads one channel of an OpenEXR file: `Y`, `Z` or `R`, or else its first.

    Values are as stored (ClearGrasp: half floats, metres, NaN or 0 where nothing was measured).

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if the file is damaged or not an OpenEXR file.
      MissingPackageError: if the package OpenEXR, an optional dependency, is not installed.
    """
    try:
        import OpenEXR  # Only here: an extra of the few data sets that need it.
    except ImportError as error:
        raise MissingPackageError(
            f"{path} needs the package OpenEXR: pip install 'diffdepth_jax[exr]'"
        ) from error
    # Damaged pixels come as a file without parts.
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
      DataError: if the file is damaged, an archive, or holds Python objects.
    """
    # Damaged headers raise errors that are not documented, such as `TokenError`.
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
    """Reads depth in metres from a 16-bit PNG, an `.npy` or an EXR file.

    Args:
      path: the file; an `.npy` is floating point [h w], [h w 1] or [1 h w].
      png_scale: stored units per metre of a PNG (see `read_depth_png`); None if unknown.
        `.npy` and EXR hold metres, whatever it is.
      dtype: of the result.

    Returns:
      Depth as stored: what was not measured is 0 in a PNG, often NaN or infinity in the others.

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if it is damaged, of another format, holds integers where metres are expected, or
        is a PNG without `png_scale`.
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
                f"{path} holds {depth.dtype} {list(depth.shape)}; a depth map in .npy must be "
                "floating point metres [h w]"
            )
        return depth.astype(dtype)
    if suffix != ".png":
        raise DataError(f"{path} is not a depth map: it must be one of {', '.join(DEPTH_SUFFIXES)}")
    if png_scale is None:
        raise DataError(
            f"{path}: a PNG does not say what its numbers are; set depth_scale to the units "
            "per metre (1000 for millimetres, 256 for KITTI)"
        )
    return read_depth_png(path, png_scale, dtype)


def read_mat(path: str | Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """Reads variables of a MATLAB file of version 4 to 7.2 (those of 7.3 are HDF5: `read_h5`).

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if the file is damaged or lacks one of the `names`.
    """
    import scipy.io  # Only here: half a second to import.

    # SciPy does not document what it raises on damaged files.
    with reading(path, Exception):
        variables = scipy.io.loadmat(path, variable_names=names)
        known = [name for name, *_ in scipy.io.whosmat(path)]
    if absent := [name for name in names if name not in variables]:
        raise DataError(f"{path} has no variable {absent[0]!r}; it holds {sorted(known)}")
    return [variables[name] for name in names]


def read_labels(path: str | Path, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Reads an 8-bit image of one channel whose values are classes or a mask.

    Args:
      path: the file.
      size: (height, width) of the image that it belongs to.

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if the file is damaged, coloured, of more than 8 bits or of another size.
    """
    image = _open(path)
    if image.mode not in ("L", "P", "1"):
        raise DataError(
            f"{path} is not a label map (Pillow mode {image.mode!r}): labels are 8-bit PNGs of one "
            "channel, not a coloured picture of them"
        )
    labels = np.asarray(image, np.uint8)
    if labels.shape != size:
        raise DataError(
            f"{path} is {_size(labels)}, its image {size[0]}x{size[1]} (height x width): they must "
            "belong to one frame"
        )
    return labels


def read_categories(path: str | Path, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Reads a map of materials in Booster's classes, 0 to 3; 2 and 3 are transparent or mirrors.

    Arguments and errors as `read_labels`, and DataError for other classes.
    """
    categories = read_labels(path, size)
    if categories.max(initial=0) > 3:
        raise DataError(
            f"{path} has class {categories.max()}: classes of materials are 0 to 3, this is "
            "another mask"
        )
    return categories


def read_numbers(path: str | Path, shape: tuple[int, ...]) -> Float64[np.ndarray, "..."]:
    """Reads a text file that holds an array's numbers and nothing else, row by row.

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if it is not `shape` finite numbers.
    """
    return numbers(read_text(path), shape, str(path))


def read_points(path: str | Path, columns: int) -> Float32[np.ndarray, "n columns"]:
    """Reads a lidar scan: float32 numbers, point after point, nothing else in the file.

    Args:
      path: the file (`.bin`).
      columns: numbers of a point: 4 in KITTI, 5 in nuScenes; the first three are x, y and z.

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if its length is not that of whole points.
    """
    with reading(path):
        data = Path(path).read_bytes()
    if len(data) % (4 * columns):
        raise DataError(
            f"{path} has {len(data)} bytes, no multiple of {4 * columns} ({columns} float32 a "
            "point): truncated or of another layout, fetch it again"
        )
    return np.frombuffer(data, np.float32).reshape(-1, columns)


def check_sample(
    image: UInt8[np.ndarray, "h w 3"], depth: np.ndarray, image_path: object, depth_path: object
) -> None:
    """Refuses a depth map that does not fit its image or holds impossible depth.

    Raises:
      DataError: if the sizes differ, or depth is NaN, infinite or negative somewhere.
    """
    if image.shape[:2] != depth.shape:
        raise DataError(
            f"image and depth differ in size: {image_path} is {_size(image)}, {depth_path} is "
            f"{_size(depth)} (height x width); they must belong to one frame"
        )
    wrong = ~(np.isfinite(depth) & (depth >= 0))
    if wrong.any():
        raise DataError(
            f"{depth_path} has {int(wrong.sum())} depth values that are NaN, infinite or negative "
            "(0 marks what was not measured): repair or leave out this file"
        )


def missing(paths: Iterable[Path]) -> list[Path]:
    """The paths that do not exist; lists each folder once rather than checking file by file."""
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
    """Turns whatever reading a file can raise into errors that name it.

    Args:
      path: the file.
      damaged: what the library that reads it raises of a damaged one, besides an OSError that does
        not come from the system.

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
                raise _damaged(path, error) from error  # a library's words
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
        raise DataError(
            f"{path} is too large to be decoded ({error}): make it smaller first"
        ) from error


def _require(path: str | Path) -> None:
    with naming_file(path, "read"):
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(
                f"{path} does not exist: check the root folder and the file list"
            ) from error
        except ValueError as error:  # a null character
            raise DataError(f"{path!r} is not a file name: {error}") from error
    if not stat.S_ISREG(mode):
        raise FileError(f"{path} cannot be read: it is a folder or device")


def _damaged(path: str | Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({error}): truncated or damaged, fetch it again")


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
