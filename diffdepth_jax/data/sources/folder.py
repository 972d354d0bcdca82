"""Your own data: a folder of images and depth maps, paired by name.

Works for any layout in which one pattern matches the images and another the depth maps, for example

    root/image/room_1/0001.jpg       images="image/*/*.jpg"
    root/depth/room_1/0001.png       depths="depth/*/*.png"      depth_scale=1000

    root/kitchen/rgb_0001.png        images="*/rgb_*.png"
    root/kitchen/depth_0001.npy      depths="*/depth_*.npy"

`*` matches any part of a name and `**` any number of folders. An image and a depth map belong
together if their stars match the same text ("room_1" and "0001"), so both patterns need the same
stars. The suffix may be `.*` for any image or depth map suffix, if each frame has one file; other
files (`Thumbs.db`) are ignored. Brackets and `?` are literal.

Depth is along the optical axis and has the image's size: a 16-bit PNG with `depth_scale` stored
units per metre, or `.npy` (floating point) or OpenEXR in metres; 0, NaN and infinity mark
unmeasured pixels.
"""

import dataclasses
import functools
import logging
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax.data import io, listing
from diffdepth_jax.data.listing import Frame
from diffdepth_jax.data.sources import Source
from diffdepth_jax.errors import DataError, MissingFileError

_LOG = logging.getLogger(__name__)

DEPTH_RANGE = (1e-3, 80.0)  # metres; adjust to your data


@dataclasses.dataclass(frozen=True)
class Config:
    """Which files to read, and what their values mean.

    Attributes:
        root: the folder that everything below is relative to.
        split: `all`, or the path of a list file with one image path per line, relative to `root`.
        images: pattern of the images.
        depths: pattern of the depth maps; None if there are none, for prediction only.
        depth_scale: stored units per metre, required for PNG depth: 1000 for millimetres, 256 for
            KITTI. `.npy` and `.exr` are always in metres.
        intrinsics: (fx, fy, cx, cy) of all images, in pixels; the centre of the top-left pixel is
            (0, 0). None if unknown.
        intrinsics_file: alternatively, a text file of nine numbers or a `.npy` [3 3]; or a pattern
            with the same stars as `images`, for one file per frame.
        condition: weather and light of all frames.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["folder"] = "folder"
    root: str = "data/custom"
    split: str = "all"
    images: str = "image/**/*.*"
    depths: str | None = "depth/**/*.*"
    depth_scale: float | None = None
    intrinsics: tuple[float, float, float, float] | None = None
    intrinsics_file: str | None = None
    condition: str = "unknown"
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, ("all",), lists=True)
        if "*" not in self.images:
            raise ValueError(
                f"images is {self.images!r}; it must contain a star, for example image/*.png"
            )
        for field in ("depths", "intrinsics_file"):
            pattern = getattr(self, field) or ""
            if "*" in pattern and len(_stars(pattern)) != len(_stars(self.images)):
                raise ValueError(
                    f"{field} is {pattern!r} and images is {self.images!r}; they must have the "
                    "same stars, which pair the files (a suffix .* does not count)"
                )
        if self.depths is not None and "*" not in self.depths:
            raise ValueError(f"depths is {self.depths!r}; it must have the same stars as images")
        if self.depth_scale is not None and not 0 < self.depth_scale < math.inf:
            raise ValueError(f"depth_scale is {self.depth_scale}; it must be positive")
        if self.intrinsics is not None and self.intrinsics_file is not None:
            raise ValueError("give intrinsics or intrinsics_file, not both")
        if self.intrinsics is not None and min(self.intrinsics[:2]) <= 0:
            raise ValueError(f"intrinsics is {self.intrinsics}; fx and fy must be positive")


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens a folder; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> listing.FrameSource:
    """Opens the frames selected by a config.

    Raises:
        MissingFileError: if the folder, the list, an image or a depth map is missing.
        DataError: if no images match, or several files belong to one frame.
    """
    root = listing.require_folder(Path(config.root), "set root to your folder")
    images = _matches(root, config.images, io.IMAGE_SUFFIXES)
    if config.split != "all":
        images = _listed(Path(config.split), root, images)
    depths = _matches(root, config.depths, io.DEPTH_SUFFIXES) if config.depths else {}
    frames = [
        Frame(
            id="_".join(part.strip("/").replace("/", "_") for part in key if part),
            image=image,
            depth=depths.get(key, _filled(root, config.depths, key)),
            calibration=_filled(root, config.intrinsics_file, key),
            condition=config.condition,
        )
        for key, image in images.items()
    ]
    return listing.FrameSource(
        frames,
        functools.partial(_read, config),
        where=f"split {config.split!r} under {root}",
        remedy=f"the patterns are images={config.images!r}, depths={config.depths!r}",
        check_files=config.check_files,
    )


def read_depth(path: str | Path, scale: float | None) -> np.ndarray:
    """Depth float32 [h w] in metres, 0 where unmeasured; see `io.read_depth_array`."""
    depth = io.read_depth_array(path, scale)
    return np.where(np.isfinite(depth), depth, np.float32(0))


def read_intrinsics(path: str | Path) -> np.ndarray:
    """Intrinsics float32 [3 3] from a text file of nine numbers or a `.npy`.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it is damaged or holds something else.
    """
    if Path(path).suffix != ".npy":
        return io.read_numbers(path, (3, 3)).astype(np.float32)
    matrix = io.read_npy(path)
    if matrix.shape != (3, 3) or matrix.dtype.kind != "f" or not np.isfinite(matrix).all():
        raise DataError(f"{path} must hold finite floats [3 3], not {matrix.dtype} {matrix}")
    return matrix.astype(np.float32)


def _read(config: Config, frame: Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Depth and intrinsics of a frame."""
    intrinsics = listing.UNKNOWN
    if frame.calibration is not None:
        intrinsics = read_intrinsics(frame.calibration)
    elif config.intrinsics is not None:
        fx, fy, cx, cy = config.intrinsics
        intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)
    if frame.depth is None:
        return listing.unmeasured(size), intrinsics
    return read_depth(frame.depth, config.depth_scale), intrinsics


def _stars(pattern: str) -> list[str]:
    """The stars that pair files: all except that of a suffix `.*`."""
    return re.findall(r"\*\*/|\*", re.sub(r"\.\*$", "", pattern))


def _matches(root: Path, pattern: str, suffixes: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    """Text matched by the stars -> path, for all matching files, in order.

    Unusable files are left out with a warning: broken or circular links, and names that are not
    UTF-8, because ids are written to text files.
    """
    any_suffix, body = pattern.endswith(".*"), pattern.removesuffix(".*")
    regex = re.escape(body).replace(r"\*\*/", "((?:[^/]+/)*)").replace(r"\*", "([^/]*)")
    whole = re.compile(regex + (r"\.[^./]+" if any_suffix else ""))
    found: dict[tuple[str, ...], str] = {}
    unusable = []
    for path in sorted(listing.below(root, re.sub(r"[\[?]", r"[\g<0>]", pattern))):
        match = whole.fullmatch(path.relative_to(root).as_posix())
        other = any_suffix and path.suffix.lower() not in suffixes
        if match is None or path.name.startswith(".") or other or path.is_dir():
            continue
        if not path.is_file() or not _is_text(str(path.relative_to(root))):
            unusable.append(path)
            continue
        key = match.groups()
        if key in found:
            raise DataError(f"{found[key]} and {path} both belong to frame {key}: keep one of them")
        found[key] = str(path)
    if unusable:
        _LOG.warning(
            "%d files of %s are left out (broken links, or names that are not UTF-8), starting "
            "with %a",
            len(unusable),
            root,
            str(unusable[0]),
        )
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python keeps bytes that are not UTF-8 as lone surrogates.
        return False
    return True


def _filled(root: Path, pattern: str | None, key: tuple[str, ...]) -> str | None:
    """The path of a frame's file according to a pattern."""
    if pattern is None:
        return None
    for part, star in zip(key, _stars(pattern), strict=False):
        pattern = pattern.replace(star, part, 1)
    return str(root / pattern)


def _listed(
    path: Path, root: Path, images: dict[tuple[str, ...], str]
) -> dict[tuple[str, ...], str]:
    """The frames in a list file, in its order."""
    keys = {Path(image): key for key, image in images.items()}
    chosen: dict[tuple[str, ...], str] = {}
    for number, line in listing.read_lines(path, "all"):
        image = root / line
        if image not in keys:
            raise MissingFileError(
                f"{path}, line {number}: {image} does not exist or does not match the pattern of "
                "images"
            )
        if keys[image] in chosen:
            raise DataError(f"{path}, line {number}: {line} occurs twice: list each frame once")
        chosen[keys[image]] = str(image)
    return chosen
