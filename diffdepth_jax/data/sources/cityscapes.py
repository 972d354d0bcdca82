"""Cityscapes: driving images from 50 cities with semi-global-matching disparity.

Used as clean images to generate adverse conditions from. Layout of the unpacked official archives
(https://www.cityscapes-dataset.com; repository mcordts/cityscapesScripts):

    root/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png    1024x2048
                                                   (leftImg8bit_trainvaltest.zip, _trainextra.zip)
    root/disparity/train/aachen/aachen_000000_000019_disparity.png
                                                   (disparity_trainvaltest.zip, _trainextra.zip)
    root/camera/train/aachen/aachen_000000_000019_camera.json
                                                   (camera_trainvaltest.zip, _trainextra.zip)

Disparity is uint16 PNG: 0 where unmeasured, otherwise (value - 1) / 256 pixels. Depth is fx *
baseline / disparity, with both from the frame's camera file; 0 where disparity is 0 or unknown.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax.data import geometry, io, listing
from diffdepth_jax.data.listing import Frame, FrameSource
from diffdepth_jax.data.sources import Source
from diffdepth_jax.errors import DataError

DEPTH_RANGE = (1e-3, 80.0)  # metres
SPLITS = ("train", "val", "test", "train_extra")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames to read, and from where.

    Attributes:
        root: the folder with the layout above.
        split: `train` (2,975), `val` (500), `test` (1,525) or `train_extra` (19,998).
        depth: `disparity` as above; or `none`, images only: depth is 0 everywhere, and intrinsics
            are NaN unless the split's camera files exist.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["cityscapes"] = "cityscapes"
    root: str = "data/cityscapes"
    split: str = "train"
    depth: Literal["disparity", "none"] = "disparity"
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, SPLITS)
        if self.depth not in ("disparity", "none"):
            raise ValueError(f"depth is {self.depth!r}; it must be disparity or none")


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens Cityscapes; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> FrameSource:
    """Opens the frames selected by a config.

    Raises:
        MissingFileError: if a folder or an image is missing, or, with depth, a disparity or camera.
        DataError: if there are no frames.
    """
    root = listing.require_folder(Path(config.root), "set root to the folder that has leftImg8bit")
    measured = config.depth == "disparity"
    remedy = (
        f"unpack leftImg8bit{', disparity and camera' if measured else ''} of {config.split} into "
        f"{root}{'' if measured else ', or leave out camera entirely'}"
    )
    images = listing.require_folder(root / "leftImg8bit" / config.split, remedy)
    calibrated = measured or (root / "camera" / config.split).is_dir()
    frames = []
    for city in listing.folder_names(images):
        for name in listing.file_names(images / city, "_leftImg8bit.png"):
            frame = name.removesuffix("_leftImg8bit.png")
            path = f"{config.split}/{city}/{frame}"
            frames.append(
                Frame(
                    id=frame,
                    image=f"{images}/{city}/{name}",
                    depth=f"{root}/disparity/{path}_disparity.png" if measured else None,
                    calibration=f"{root}/camera/{path}_camera.json" if calibrated else None,
                )
            )
    where = f"split {config.split!r} of {config.root}"
    return FrameSource(frames, _read, where=where, remedy=remedy, check_files=config.check_files)


def _read(frame: Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    if frame.calibration is None:
        return listing.unmeasured(size), listing.UNKNOWN
    camera = io.read_json(frame.calibration)
    try:
        fx, fy, cx, cy = (float(camera["intrinsic"][key]) for key in ("fx", "fy", "u0", "v0"))
        baseline = float(camera["extrinsic"]["baseline"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{frame.calibration}: {error!r}: a Cityscapes camera file must have intrinsic.fx, fy, "
            "u0, v0 and extrinsic.baseline; unpack it again"
        ) from error
    intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)
    if frame.depth is None:
        return listing.unmeasured(size), intrinsics
    # (value - 1) / 256; 0 in the file becomes negative, which means unmeasured.
    disparity = io.read_depth_png(frame.depth) - np.float32(1 / 256)
    return geometry.disparity_depth(disparity, fx * baseline), intrinsics
