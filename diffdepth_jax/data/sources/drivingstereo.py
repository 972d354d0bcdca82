"""DrivingStereo: half-resolution driving images, by weather and as whole sequences.

Layout of the unpacked official archives (https://drivingstereo-dataset.github.io), with images of
about 400x880. SEQUENCE is a start time, such as 2018-10-19-09-30-39, and prefixes every frame's
name:

    root/{sunny,cloudy,foggy,rainy}/left-image-half-size/SEQUENCE_2018-10-19-09-31-36-438.jpg
    root/{sunny,cloudy,foggy,rainy}/depth-map-half-size/SEQUENCE_2018-10-19-09-31-36-438.png
    root/test-left-image/left-image-half-size/*.jpg
    root/test-depth-map/depth-map-half-size/*.png
    root/train-left-image/SEQUENCE/*.jpg
    root/train-depth-map/SEQUENCE/*.png
    root/{calib,test-calib}/half-image-calib/SEQUENCE.txt      P_rect_101 of the left camera

Depth is uint16 PNG, metres * 256, 0 where unmeasured. Frames of sequences without calibration have
NaN intrinsics.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax.data import io, listing
from diffdepth_jax.data.listing import Frame, FrameSource
from diffdepth_jax.data.sources import Source

DEPTH_RANGE = (1e-3, 80.0)  # metres
WEATHERS = ("sunny", "cloudy", "foggy", "rainy")
_HALF = ("left-image-half-size", "depth-map-half-size")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames to read, and from where.

    Attributes:
        root: the folder with the layout above.
        split: a weather (500 frames each), which also sets `condition`; `weathers` for all four;
            `train` (174,431 frames of 38 sequences) or `test` (7,751 of 4), with condition "day".
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["drivingstereo"] = "drivingstereo"
    root: str = "data/drivingstereo"
    split: str = "train"
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, ("train", "test", "weathers", *WEATHERS))


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens DrivingStereo; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> FrameSource:
    """Opens the frames selected by a config.

    Raises:
        MissingFileError: if a folder, image or depth map is missing.
        DataError: if there are no frames.
    """
    root = listing.require_folder(
        Path(config.root), f"set root to the folder that holds {config.split} of DrivingStereo"
    )
    calibrations = {
        name.removesuffix(".txt"): f"{folder}/{name}"
        for folder in (root / part / "half-image-calib" for part in ("calib", "test-calib"))
        if folder.is_dir()
        for name in listing.file_names(folder, ".txt")
    }
    remedy = f"unpack the half-resolution left images and depth maps of {config.split} into {root}"
    frames = []
    for images, depths, condition in _folders(config.split, root, remedy):
        listing.require_folder(images, remedy)
        for name in listing.file_names(images, ".jpg", ".png"):
            stem = name.rpartition(".")[0]
            frames.append(
                Frame(
                    id=stem,
                    image=f"{images}/{name}",
                    depth=f"{depths}/{stem}.png",
                    calibration=calibrations.get(stem.partition("_")[0]),
                    condition=condition,
                )
            )
    where = f"split {config.split!r} of {config.root}"
    return FrameSource(frames, _read, where=where, remedy=remedy, check_files=config.check_files)


def _folders(split: str, root: Path, remedy: str) -> list[tuple[Path, Path, str]]:
    """Folders of images and of their depth, with the condition."""
    if split == "train":
        images, depths = root / "train-left-image", root / "train-depth-map"
        listing.require_folder(images, remedy)
        sequences = listing.folder_names(images)
        return [(images / name, depths / name, "day") for name in sequences]
    if split == "test":
        return [(root / "test-left-image" / _HALF[0], root / "test-depth-map" / _HALF[1], "day")]
    weathers = WEATHERS if split == "weathers" else (split,)
    return [(root / name / _HALF[0], root / name / _HALF[1], name) for name in weathers]


def _read(frame: Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    depth = io.read_depth_png(listing.known(frame.depth))
    if frame.calibration is None:
        return depth, listing.UNKNOWN
    projection = io.read_calibration(frame.calibration, "P_rect_101", (3, 4))
    return depth, projection[:, :3].astype(np.float32)
