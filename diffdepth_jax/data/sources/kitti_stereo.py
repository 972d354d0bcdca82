"""KITTI 2012 and 2015: the images of the stereo and flow benchmarks.

Used as clean images to generate adverse conditions from; the disparity of the training images is
read on request. Layout of the unpacked official archives (https://www.cvlibs.net/datasets/kitti);
`root` is the folder of one of the two benchmarks:

    2012 (data_stereo_flow.zip, data_stereo_flow_calib.zip; 194 training and 195 test frames)
    root/{training,testing}/colored_0/000000_10.png    left colour image (_11: the next frame)
    root/training/{disp_occ,disp_noc}/000000_10.png
    root/{training,testing}/calib/000000.txt           P0, P1, P2, P3

    2015 (data_scene_flow.zip, data_scene_flow_calib.zip; 200 and 200)
    root/{training,testing}/image_2/000000_10.png
    root/training/{disp_occ_0,disp_noc_0}/000000_10.png
    root/{training,testing}/calib_cam_to_cam/000000.txt    P_rect_02, P_rect_03

Disparity is uint16 PNG, pixels * 256, 0 where unmeasured (their devkits).
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from diffdepth_jax.data import geometry, io, listing
from diffdepth_jax.data.listing import Frame, FrameSource
from diffdepth_jax.data.sources import Source

DEPTH_RANGE = (1e-3, 80.0)  # metres
_FOLDERS = {"train": "training", "test": "testing"}


class _Year(NamedTuple):
    """Names used by a benchmark; `cameras` are those that its disparity belongs to."""

    images: str
    disparity: str
    calibration: str
    cameras: tuple[str, str]


# The disparity of 2012 is for the grey cameras; all four have the same intrinsics after
# rectification, so it is commonly used with the colour image of the same side.
_YEARS = {
    2012: _Year("colored_0", "disp_{}", "calib", ("P0", "P1")),
    2015: _Year("image_2", "disp_{}_0", "calib_cam_to_cam", ("P_rect_02", "P_rect_03")),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames to read, and from where.

    Attributes:
        root: the folder that holds training and testing of one benchmark.
        split: `train` or `test`; the depth of `test` is withheld.
        year: which benchmark.
        depth: `none`, images only (depth is 0 everywhere); `occ`, depth from the disparity of all
            pixels; `noc`, of pixels that both cameras see. `test` only supports `none`.
        second_frames: also read the next frames, `_11`; they have no disparity, so depth must be
            `none`.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["kitti_stereo"] = "kitti_stereo"
    root: str = "data/kitti2015"
    split: str = "train"
    year: Literal[2012, 2015] = 2015
    depth: Literal["none", "occ", "noc"] = "none"
    second_frames: bool = False
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, _FOLDERS)
        if self.year not in _YEARS:
            raise ValueError(f"year is {self.year!r}; it must be 2012 or 2015")
        if self.depth not in ("none", "occ", "noc"):
            raise ValueError(f"depth is {self.depth!r}; it must be none, occ or noc")
        if self.depth != "none" and (self.split == "test" or self.second_frames):
            raise ValueError(
                f"depth is {self.depth!r}, but test images and second frames have none: set depth "
                "to none, or split to train and second_frames to false"
            )


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens KITTI 2012 or 2015; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> FrameSource:
    """Opens the frames selected by a config; `intrinsics` are NaN if there is no calibration.

    Raises:
        MissingFileError: if a folder, image or disparity is missing, or, with depth, a calibration.
        DataError: if there are no frames.
    """
    year = _YEARS[config.year]
    listing.require_folder(Path(config.root), "set root to the folder that holds training")
    folder = Path(config.root, _FOLDERS[config.split])
    archive = {2012: "data_stereo_flow", 2015: "data_scene_flow"}[config.year]
    remedy = f"unpack {archive}.zip and {archive}_calib.zip into {config.root}"
    images = listing.require_folder(folder / year.images, remedy)
    calibrated = config.depth != "none" or (folder / year.calibration).is_dir()
    suffixes = ("_10.png", "_11.png") if config.second_frames else ("_10.png",)
    disparity = folder / year.disparity.format(config.depth)
    frames = [
        Frame(
            id=name.removesuffix(".png"),
            image=f"{images}/{name}",
            depth=None if config.depth == "none" else f"{disparity}/{name}",
            calibration=f"{folder}/{year.calibration}/{name[:6]}.txt" if calibrated else None,
            condition="day-clear",
        )
        for name in listing.file_names(images, *suffixes)
    ]
    where = f"split {config.split!r} of {config.root}"
    reader = _Reader(year.cameras)
    return FrameSource(frames, reader, where=where, remedy=remedy, check_files=config.check_files)


@dataclasses.dataclass(frozen=True)
class _Reader:
    cameras: tuple[str, str]

    def __call__(self, frame: Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        if frame.calibration is None:
            return listing.unmeasured(size), listing.UNKNOWN
        left, right = (
            io.read_calibration(frame.calibration, camera, (3, 4)) for camera in self.cameras
        )
        intrinsics = left[:, :3].astype(np.float32)
        if frame.depth is None:
            return listing.unmeasured(size), intrinsics
        # The fourth column is -focal length * position of the camera along x.
        disparity = io.read_depth_png(frame.depth)
        return geometry.disparity_depth(disparity, float(left[0, 3] - right[0, 3])), intrinsics
