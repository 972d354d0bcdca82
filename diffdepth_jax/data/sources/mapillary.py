"""Mapillary Vistas: street images from all over the world, any camera, weather and time of day.

Used as clean images to generate adverse conditions from. There is no depth (0 everywhere) and no
calibration (intrinsics are NaN). Layout of the unpacked official archive
(https://www.mapillary.com/dataset/vistas, the same in versions 1.2 and 2.0):

    root/training/images/*.jpg        18,000, of any size
    root/validation/images/*.jpg      2,000
    root/testing/images/*.jpg         5,000
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax.data import listing
from diffdepth_jax.data.listing import Frame, FrameSource
from diffdepth_jax.data.sources import Source

DEPTH_RANGE = (1e-3, 80.0)  # metres, for depth predicted from the images
_FOLDERS = {"train": "training", "val": "validation", "test": "testing"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which images to read, and from where.

    Attributes:
        root: the folder with the layout above.
        split: `train`, `val` or `test`.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["mapillary"] = "mapillary"
    root: str = "data/mapillary"
    split: str = "train"
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, _FOLDERS)


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens Mapillary Vistas; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> FrameSource:
    """Opens the images selected by a config.

    Raises:
        MissingFileError: if a folder is missing.
        DataError: if there are no images.
    """
    listing.require_folder(Path(config.root), "set root to the folder that has training")
    remedy = f"unpack Mapillary Vistas into {config.root}"
    folder = Path(config.root, _FOLDERS[config.split], "images")
    listing.require_folder(folder, remedy)
    frames = [
        Frame(id=name.removesuffix(".jpg"), image=f"{folder}/{name}", condition="unknown")
        for name in listing.file_names(folder, ".jpg")
    ]
    where = f"split {config.split!r} of {config.root}"
    return FrameSource(frames, _read, where=where, remedy=remedy, check_files=config.check_files)


def _read(frame: Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return listing.unmeasured(size), listing.UNKNOWN
