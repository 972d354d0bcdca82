"""ApolloScape stereo: rectified driving images with disparity from lidar and fitted car models.

Used as clean images to generate adverse conditions from. Layout of the unpacked official archives
(stereo_train_1.zip to 3 and stereo_test.zip of http://apolloscape.auto/stereo.html; repository
ApolloScapeAuto/dataset-api):

    root/stereo_train_001/camera_5/171206_034559609_Camera_5.jpg      left, 960x3130
    root/stereo_train_001/disparity/171206_034559609_Camera_5.png
    root/stereo_train_001/{fg_mask,bg_mask}/171206_034559609_Camera_5.png
    root/test/camera_5/*.jpg                                          without disparity

Disparity is uint16 PNG; 0 and 65535 mean unmeasured. The training archives store 1/200 pixel,
according to their readme as quoted in public code; the evaluation examples in the repository are
2710x3384 and store whole pixels: set `disparity_scale` to 1. Masks are 0 or 65535: foreground
(cars) and background.

Depth follows from the pair's focal length and baseline, on which public code that reads these
archives agrees: 2301.3147 px * 0.36 m / disparity. Intrinsics are known at 960x3130 and NaN at
other sizes.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax.data import geometry, io, listing
from diffdepth_jax.data.listing import Frame, FrameSource
from diffdepth_jax.data.sources import Source
from diffdepth_jax.errors import DataError

DEPTH_RANGE = (1e-3, 100.0)  # metres
FOCAL_LENGTH, BASELINE = 2301.3147, 0.36  # pixels, metres
INTRINSICS = np.array(
    [[FOCAL_LENGTH, 0, 1489.8536], [0, FOCAL_LENGTH, 479.1750], [0, 0, 1]], np.float32
)
_RECTIFIED = (960, 3130)
_NOTHING = 65535
_FOLDERS = {
    "train": ("stereo_train_001", "stereo_train_002", "stereo_train_003"),
    "test": ("test",),
}
_MASKS = {"foreground": "fg_mask", "background": "bg_mask"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames to read, and from where.

    Attributes:
        root: the folder with the layout above.
        split: `train` (whichever of its three parts exist) or `test`, whose depth is withheld.
        depth: `disparity` as above; `foreground` or `background`, only within that mask; or `none`,
            images only: depth is 0 everywhere. `test` only supports `none`.
        disparity_scale: stored units per pixel of disparity.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["apolloscape"] = "apolloscape"
    root: str = "data/apolloscape"
    split: str = "train"
    depth: Literal["disparity", "foreground", "background", "none"] = "none"
    disparity_scale: float = 200.0
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, _FOLDERS)
        if self.depth not in ("disparity", "none", *_MASKS):
            raise ValueError(
                f"depth is {self.depth!r}; it must be disparity, foreground, background or none"
            )
        if self.split == "test" and self.depth != "none":
            raise ValueError(f"depth is {self.depth!r}, but test has no depth: set depth to none")
        if not self.disparity_scale > 0:
            raise ValueError(f"disparity_scale is {self.disparity_scale}; it must be positive")


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens ApolloScape stereo; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> FrameSource:
    """Opens the frames selected by a config.

    Raises:
        MissingFileError: if a folder or an image is missing, or, with depth, a disparity or mask.
        DataError: if there are no frames.
    """
    root = listing.require_folder(
        Path(config.root), "set root to the folder that has stereo_train_001"
    )
    parts = [part for part in _FOLDERS[config.split] if (root / part).is_dir()]
    remedy = (
        f"unpack the archives of {config.split} ({', '.join(_FOLDERS[config.split])}) into {root}"
    )
    frames = []
    for part in parts:
        images = listing.require_folder(root / part / "camera_5", remedy)
        for name in listing.file_names(images, ".jpg"):
            file = f"{name.removesuffix('.jpg')}.png"
            masks = [_MASKS[config.depth]] if config.depth in _MASKS else []
            frames.append(
                Frame(
                    id=name.removesuffix(".jpg"),
                    image=f"{images}/{name}",
                    depth=None if config.depth == "none" else f"{root}/{part}/disparity/{file}",
                    condition="day",
                    others=tuple(f"{root}/{part}/{mask}/{file}" for mask in masks),
                )
            )
    where = f"split {config.split!r} of {config.root}"
    reader = _Reader(config.disparity_scale)
    return FrameSource(frames, reader, where=where, remedy=remedy, check_files=config.check_files)


@dataclasses.dataclass(frozen=True)
class _Reader:
    disparity_scale: float

    def __call__(self, frame: Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        intrinsics = INTRINSICS if size == _RECTIFIED else listing.UNKNOWN
        if frame.depth is None:
            return listing.unmeasured(size), intrinsics
        stored = io.read_depth_png(frame.depth, scale=1.0)
        measured = stored != _NOTHING
        for path in frame.others:
            mask = io.read_depth_png(path, scale=1.0) > 0
            if mask.shape != stored.shape:
                raise DataError(
                    f"{path} is {mask.shape}, but {frame.depth} is {stored.shape}: they must "
                    "belong to the same frame"
                )
            measured &= mask
        disparity = np.where(measured, stored / np.float32(self.disparity_scale), np.float32(0))
        return geometry.disparity_depth(disparity, FOCAL_LENGTH * BASELINE), intrinsics
