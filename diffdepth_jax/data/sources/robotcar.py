"""Oxford RobotCar as prepared by md4all: undistorted images and accumulated lidar points.

Layout of the repository md4all/md4all (README, resources/robotcar_file_tree.png) after running its
two preparation scripts; SCENE is 2014-12-09-13-21-02 (day) or 2014-12-16-18-44-24 (night):

    root/SCENE/stereo/left/1418132504537582.png     960x1280 RGB, demosaiced and undistorted
    root/SCENE/lms_front_synchronized/vo/time_margin=+-4.0e+06/1418132504537582.pcd.bin
    root/models/stereo_wide_left.txt                intrinsics, from the data set's SDK
    root/splits/SCENE_test.txt                      a line's first word is the timestamp
    root/splits/SCENE_{train,val}_stride_1.txt      previous, current and next timestamp
    root/filter/filter_train_samples.txt            timestamps

The raw recordings come from https://robotcar-dataset.robots.ox.ac.uk, the lists from md4all's
authors; neither can be included here. A point cloud is float32 [3 n], one coordinate after the
other, in vehicle axes at the camera; it accumulates the front laser's scans from 4 s before to 4 s
after the image by visual odometry. Depth is z in camera coordinates, in metres, 0 where no point
falls; a pixel keeps the point nearest to the camera. md4all only computes clouds for val and test:
frames of `train` have no depth (0 everywhere).

md4all's evaluation crops to the upper 768 of the 960 rows; this source returns whole images.
(md4all also drops points less than half a pixel from the image border; here they count.)
"""

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax.data import geometry, io, listing
from diffdepth_jax.data.listing import Frame, FrameSource
from diffdepth_jax.data.sources import Source
from diffdepth_jax.errors import DataError

DEPTH_RANGE = (0.1, 50.0)  # metres, as in md4all's evaluation
SCENES = {"2014-12-09-13-21-02": "day-clear", "2014-12-16-18-44-24": "night-clear"}
_LISTS = {
    "train": "{}_train_stride_1.txt",
    "val": "{}_val_stride_1.txt",
    "test": "{}_test.txt",
}
_CLOUDS = "lms_front_synchronized/vo/time_margin=+-4.0e+06"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames to read, and from where.

    Attributes:
        root: the folder with the layout above.
        split: `train`, `val` or `test` (1,411 frames, 709 of them by night), read from the lists in
            `root/splits`; or the path of a list file in the same format whose name contains the
            scene.
        conditions: `day-clear`, `night-clear` or both.
        exclude: path of a list of timestamps to leave out, such as `filter_train_samples.txt`.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["robotcar"] = "robotcar"
    root: str = "data/robotcar"
    split: str = "train"
    conditions: tuple[str, ...] = ("day-clear", "night-clear")
    exclude: str | None = None
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, _LISTS, lists=True)
        listing.require_conditions(self.conditions, SCENES.values())
        if not self.conditions:
            raise ValueError("conditions is empty; name day-clear, night-clear or both")


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens RobotCar; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> FrameSource:
    """Opens the frames selected by a config, day before night.

    Raises:
        MissingFileError: if a folder, list, image, cloud or the camera's model is missing.
        DataError: if a list cannot be read, or there are no frames.
    """
    listing.require_folder(Path(config.root), "set root to the folder of RobotCar")
    if config.split in _LISTS:
        scenes = [scene for scene, name in SCENES.items() if name in config.conditions]
        lists = {
            scene: Path(config.root, "splits", _LISTS[config.split].format(scene))
            for scene in scenes
        }
    else:
        lists = {_scene_of(Path(config.split)): Path(config.split)}
    excluded = set()
    if config.exclude is not None:
        excluded = {line for _, line in listing.read_lines(Path(config.exclude), "none")}
    frames = [
        _frame(config, scene, timestamp)
        for scene, path in lists.items()
        for timestamp in _timestamps(path)
        if timestamp not in excluded
    ]
    return FrameSource(
        frames,
        _read,
        where=f"split {config.split!r} of {config.root}",
        remedy="run md4all's precompute_rgb_images.py and precompute_depth_gt.py for these lists",
        check_files=config.check_files,
    )


def _scene_of(path: Path) -> str:
    scene = next((scene for scene in SCENES if scene in path.name), None)
    if scene is None:
        raise DataError(f"{path}: the name of a list must contain its scene, {' or '.join(SCENES)}")
    return scene


def _timestamps(path: Path) -> list[str]:
    """The first word of each line, or the middle one of three: all lists but `test` name
    neighbours."""
    timestamps = []
    for number, line in listing.read_lines(path, f"one of {', '.join(_LISTS)}, listed in splits"):
        words = line.split()
        timestamp = words[1] if len(words) == 3 and "_test" not in path.name else words[0]
        if not re.fullmatch(r"\d{16}", timestamp):
            raise DataError(f"{path}, line {number}: {line!r} has no 16-digit timestamp")
        timestamps.append(timestamp)
    return timestamps


def _frame(config: Config, scene: str, timestamp: str) -> Frame:
    folder = f"{config.root}/{scene}"
    return Frame(
        id=timestamp,
        image=f"{folder}/stereo/left/{timestamp}.png",
        depth=None if config.split == "train" else f"{folder}/{_CLOUDS}/{timestamp}.pcd.bin",
        calibration=f"{config.root}/models/stereo_wide_left.txt",
        condition=SCENES[scene],
    )


def _read(frame: Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    # fx, fy, cx, cy, then the pose of the camera axes in vehicle axes, row by row.
    model = io.read_numbers(listing.known(frame.calibration), (20,))
    fx, fy, cx, cy = model[:4]
    intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    depth = listing.unmeasured(size)
    if frame.depth is not None:
        coordinates = io.read_points(frame.depth, 3).reshape(3, -1)
        try:
            camera_from_vehicle = np.linalg.inv(model[4:].reshape(4, 4))
        except np.linalg.LinAlgError as error:
            raise DataError(f"{frame.calibration}: {error}: its pose is damaged") from error
        points = geometry.transform_points(camera_from_vehicle, coordinates.T)
        depth = geometry.projected_depth(points, intrinsics, size)
    return depth, intrinsics.astype(np.float32)
