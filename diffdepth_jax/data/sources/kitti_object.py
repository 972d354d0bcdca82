"""KITTI object: images of the detection benchmark, with depth from their projected lidar scans.

Layout of the unpacked official archives (https://www.cvlibs.net/datasets/kitti, object):

    root/training/image_2/000000.png       left colour camera   (data_object_image_2.zip)
    root/training/velodyne/000000.bin      float32 [n 4]: x, y, z, reflectance
                                                                (data_object_velodyne.zip)
    root/training/calib/000000.txt         P2, R0_rect, Tr_velo_to_cam
                                                                (data_object_calib.zip)
    root/testing/...                       the same

Depth is z in camera 2 coordinates, in metres, 0 where no point falls: a single scan covers about 4%
of the pixels. A pixel keeps the point nearest to the camera (`geometry.projected_depth`). The
frames come from the drives of the raw data, so make sure not to evaluate on training drives.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax.data import geometry, io, listing
from diffdepth_jax.data.listing import Frame, FrameSource
from diffdepth_jax.data.sources import Source

DEPTH_RANGE = (1e-3, 80.0)  # metres
_FOLDERS = {"train": "training", "test": "testing"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames to read, and from where.

    Attributes:
        root: the folder with the layout above.
        split: `train` (7,481 frames) or `test` (7,518, without boxes but with scans).
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["kitti_object"] = "kitti_object"
    root: str = "data/kitti_object"
    split: str = "train"
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, _FOLDERS)


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens KITTI object; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> FrameSource:
    """Opens the frames selected by a config.

    Raises:
        MissingFileError: if a folder, image, scan or calibration is missing.
        DataError: if there are no frames.
    """
    listing.require_folder(Path(config.root), "set root to the folder that holds training")
    folder = Path(config.root, _FOLDERS[config.split])
    remedy = (
        f"unpack data_object_image_2.zip, data_object_velodyne.zip and data_object_calib.zip into "
        f"{config.root}"
    )
    images = listing.require_folder(folder / "image_2", remedy)
    names = [name.removesuffix(".png") for name in listing.file_names(images, ".png")]
    frames = [
        Frame(
            id=name,
            image=f"{images}/{name}.png",
            depth=f"{folder}/velodyne/{name}.bin",
            calibration=f"{folder}/calib/{name}.txt",
        )
        for name in names
    ]
    where = f"split {config.split!r} of {config.root}"
    return FrameSource(frames, _read, where=where, remedy=remedy, check_files=config.check_files)


def _read(frame: Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    calibration = listing.known(frame.calibration)
    projection = io.read_calibration(calibration, "P2", (3, 4))
    rotation = io.read_calibration(calibration, "R0_rect", (3, 3))
    camera_from_lidar = np.eye(4)
    camera_from_lidar[:3] = rotation @ io.read_calibration(calibration, "Tr_velo_to_cam", (3, 4))
    # P2 = intrinsics @ [1 | offset of camera 2 from the reference camera].
    intrinsics = projection[:, :3]
    camera_from_lidar[:3, 3] += np.linalg.solve(intrinsics, projection[:, 3])
    points = io.read_points(listing.known(frame.depth), 4)[:, :3]
    points = geometry.transform_points(camera_from_lidar, points)
    return geometry.projected_depth(points, intrinsics, size), intrinsics.astype(np.float32)
