"""KITTI: camera images of the raw data with the annotated depth of the depth benchmark.

Layout, as the official archives unpack (https://www.cvlibs.net/datasets/kitti), `root` being the
folder of the raw data and `depth_root`, the same folder unless given, that of the depth:

    root/2011_09_26/calib_cam_to_cam.txt
    root/2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png
    depth_root/train/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png
    depth_root/val/2011_09_26_drive_0002_sync/...
    depth_root/depth_selection/val_selection_cropped/{image,groundtruth_depth,intrinsics}/...

Also read: images converted to `.jpg`; drives directly under `depth_root`, without `train` and `val`
(as BTS has them); images and calibration copied into the drives of `depth_root` (as NLSPN and
DiffusionDepth prepare them).

Depth is uint16 PNG, metres * 256, 0 where nothing was measured (devkit of the depth benchmark).
The size of the images differs between dates: 370x1224 to 376x1242.
"""

import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from diffdepth_jax.data import io, splits
from diffdepth_jax.data.sources import Sample, Source

# Metres over which the field evaluates; the files themselves go a little farther.
DEPTH_RANGE = (1e-3, 80.0)
CONDITION = "day-clear"

Camera = Literal["image_02", "image_03"]
SPLITS = ("train", "val", "val_selection", "eigen_train", "eigen_test")
_SIDES = {"l": "image_02", "r": "image_03", "2": "image_02", "3": "image_03"}
_DRIVE = r"\d{4}_\d{2}_\d{2}_drive_\d{4}_(?:sync|extract)"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames of KITTI, and where they are.

    Attributes:
      root: folder of the raw data.
      split: `train` and `val`, the folders of the depth benchmark; `val_selection`, its 1000
        validation frames at 352x1216; `eigen_train` and `eigen_test`, Eigen's division
        (`data/splits.py`; eigen_test are the 652 frames with annotated depth); or the path of a
        list file. Note that `train` holds most drives of `eigen_test`.
      depth_root: folder of the depth; None for `root`.
      depth: folder under `proj_depth`: the annotated `groundtruth`, the single scans
        `velodyne_raw`, or another one in the same format.
      cameras: left and right colour camera; either or both. Lists and `eigen_test` name theirs.

    A list file has one entry a line, in any of the field's forms:

        2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png DEPTH_PNG 721.5377
        2011_09_26/2011_09_26_drive_0002_sync 69 l
        2011_09_26_drive_0002_sync

    that is image, depth and focal length (BTS, AdaBins, Marigold), where `None` for the depth says
    that the frame has none: it is left out and counted in `num_without_depth`; drive, frame with
    or without leading zeros, and side (monodepth2); or a drive, meaning every frame with depth.
    """

    name: Literal["kitti"] = "kitti"
    root: str = "data/kitti"
    split: str = "train"
    depth_root: str | None = None
    depth: str = "groundtruth"
    cameras: tuple[Camera, ...] = ("image_02", "image_03")

    def __post_init__(self) -> None:
        if self.split not in SPLITS and not self.split.endswith(".txt"):
            raise ValueError(
                f"split is {self.split!r}; it must be one of {', '.join(SPLITS)} or the path of a "
                "list file ending in .txt"
            )
        if not self.cameras:
            raise ValueError("cameras is empty; name image_02, image_03 or both")


def source(split: str, root: str | Path, **options: object) -> Source:
    """Opens KITTI; `options` are further fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> Source:
    """Opens the frames that a config names.

    Raises:
      FileNotFoundError: if a folder, list, image or depth map is missing.
      ValueError: if a list cannot be read, or there are no frames.
    """
    if config.split == "val_selection":
        return ValSelection(config)
    if not Path(config.root).is_dir():
        raise FileNotFoundError(
            f"{config.root} does not exist: set root to the folder of the KITTI raw data, the one "
            "that holds 2011_09_26 and the other dates"
        )
    return Kitti(config)


class _Wanted(NamedTuple):
    """An entry of a split; frame None stands for every frame with depth."""

    drive: str
    camera: str
    frame: int | None


class _Folder(NamedTuple):
    """One camera of one drive."""

    drive: str
    camera: str
    images: Path
    suffix: str
    depths: Path
    intrinsics: np.ndarray


class Kitti:
    """Frames of the raw data; see `Config` and the layout above. `intrinsics` are all NaN for the
    drives that have no `calib_cam_to_cam.txt`, and a warning in the log says so."""

    def __init__(self, config: Config):
        self.config = config
        self.num_without_depth = 0
        self._depth_root = Path(config.depth_root or config.root)
        folders: dict[tuple[str, str], _Folder] = {}
        self._frames: list[tuple[_Folder, str]] = []
        for drive, camera, frame in self._wanted():
            if (drive, camera) not in folders:
                folders[drive, camera] = self._folder(drive, camera)
            folder = folders[drive, camera]
            if frame is None:
                frames = sorted(path.stem for path in folder.depths.glob("*.png"))
                self._frames += [(folder, name) for name in frames]
            else:
                self._frames.append((folder, f"{frame:010d}"))
        self._check(list(folders.values()))

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        folder, frame = self._frames[index]
        image_path, depth_path = _image_path(folder, frame), _depth_path(folder, frame)
        image, depth = io.read_image(image_path), io.read_depth_png(depth_path)
        io.check_sample(image, depth, image_path, depth_path)
        return Sample(
            image=image,
            depth=depth,
            intrinsics=folder.intrinsics,
            id=f"{folder.drive}_{frame}_{folder.camera}",
            condition=CONDITION,
        )

    def _wanted(self) -> list[_Wanted]:
        config = self.config
        if config.split in ("train", "val"):
            folder = self._depth_root / config.split
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"{folder} does not exist: unpack KITTI's data_depth_annotated.zip into "
                    f"{self._depth_root}, or set depth_root to where its train and val folders are"
                )
            drives = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
            return [
                _Wanted(drive, camera, None)
                for drive in drives
                for camera in config.cameras
                if (folder / drive / "proj_depth" / config.depth / camera).is_dir()
            ]
        if config.split == "eigen_train":
            return [
                _Wanted(drive, cam, None) for drive in splits.EIGEN_TRAIN for cam in config.cameras
            ]
        if config.split == "eigen_test":
            return [
                _Wanted(drive, "image_02", frame)
                for drive, frames in splits.EIGEN_TEST.items()
                for frame in frames
            ]
        return self._listed(Path(config.split))

    def _listed(self, path: Path) -> list[_Wanted]:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: split must name a list file, or {SPLITS}"
            )
        wanted = []
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            words = line.split()
            if not words:
                continue
            drive = re.search(_DRIVE, words[0])
            image = re.search(r"(image_0[23])/data/(\d+)\.(png|jpg)$", words[0])
            if drive and image and len(words) > 1:
                if words[1] == "None":
                    self.num_without_depth += 1
                else:
                    wanted.append(_Wanted(drive[0], image[1], int(image[2])))
            elif drive and len(words) == 3 and words[1].isdigit() and words[2] in _SIDES:
                wanted.append(_Wanted(drive[0], _SIDES[words[2]], int(words[1])))
            elif drive and len(words) == 1 and words[0].endswith(drive[0]):
                wanted += [_Wanted(drive[0], camera, None) for camera in self.config.cameras]
            else:
                raise ValueError(
                    f"{path}, line {number}: {line!r} is none of 'IMAGE DEPTH [FOCAL]', "
                    "'DATE/DRIVE FRAME l|r' and 'DRIVE'"
                )
        return wanted

    def _folder(self, drive: str, camera: str) -> _Folder:
        split = self.config.split
        parts = (split,) if split in ("train", "val") else ("train", "val", "")
        depths = [
            self._depth_root / part / drive / "proj_depth" / self.config.depth / camera
            for part in parts
        ]
        found = next((path for path in depths if path.is_dir()), None)
        if found is None:
            raise FileNotFoundError(
                f"drive {drive} has no depth for {camera}: looked for "
                f"{', '.join(map(str, depths))}. Unpack data_depth_annotated.zip there, or set "
                "depth_root"
            )
        prepared = found.parents[2]
        date = Path(self.config.root) / drive.split("_drive_")[0]
        images = date / drive / camera / "data"
        if not images.is_dir() and (prepared / camera / "data").is_dir():
            images = prepared / camera / "data"
        if not images.is_dir():
            raise FileNotFoundError(
                f"{images} does not exist: download the raw data of {drive} (synced and "
                "rectified), or set root to the folder that holds the dates"
            )
        calibrations = (date / "calib_cam_to_cam.txt", prepared / "calib_cam_to_cam.txt")
        calibration = next((path for path in calibrations if path.is_file()), None)
        intrinsics = (
            np.full((3, 3), np.nan, np.float32)
            if calibration is None
            else read_calibration(calibration, camera)
        )
        suffix = next((Path(name).suffix for name in os.listdir(images) if name[0] != "."), ".png")
        return _Folder(drive, camera, images, suffix, found, intrinsics)

    def _check(self, folders: list[_Folder]) -> None:
        config = self.config
        if not self._frames:
            raise ValueError(
                f"no frames for split {config.split!r} with depth {config.depth!r} and cameras "
                f"{config.cameras} under {self._depth_root} ({self.num_without_depth} listed "
                "without depth)"
            )
        paths = (path(*frame) for path in (_depth_path, _image_path) for frame in self._frames)
        if missing := io.missing(paths):
            raise FileNotFoundError(
                f"{len(missing)} of {2 * len(self._frames)} files of split {config.split!r} are "
                f"missing, the first is {missing[0]}: complete the download, or leave the frames "
                "out by a list file (None in place of their depth)"
            )
        uncalibrated = sorted({f.drive for f in folders if np.isnan(f.intrinsics).any()})
        if uncalibrated:
            logging.getLogger(__name__).warning(
                "no calib_cam_to_cam.txt for %d drives, the first is %s: their intrinsics are NaN",
                len(uncalibrated),
                uncalibrated[0],
            )


class ValSelection:
    """The 1000 frames of `depth_selection/val_selection_cropped`: 352x1216, one intrinsics file a
    frame (nine numbers, row by row)."""

    def __init__(self, config: Config):
        self.num_without_depth = 0
        depth_root = Path(config.depth_root or config.root)
        self._folder = depth_root / "depth_selection" / "val_selection_cropped"
        if not self._folder.is_dir():
            raise FileNotFoundError(
                f"{self._folder} does not exist: unpack KITTI's data_depth_selection.zip into "
                f"{depth_root}, or set depth_root to the folder that holds depth_selection"
            )
        pattern = re.compile(rf"({_DRIVE})_image_(\d+)_(image_0[23])\.png")
        names = sorted(path.name for path in (self._folder / "image").glob("*.png"))
        matches = [match for name in names if (match := pattern.fullmatch(name))]
        self._frames = [match.groups() for match in matches if match[3] in config.cameras]
        if not self._frames:
            raise ValueError(
                f"{self._folder / 'image'} has no image of {config.cameras} named like "
                "2011_09_26_drive_0002_sync_image_0000000005_image_02.png"
            )

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        drive, frame, camera = self._frames[index]
        stem = f"{drive}_image_{frame}_{camera}"
        image_path = self._folder / "image" / f"{stem}.png"
        depth_name = f"{drive}_groundtruth_depth_{frame}_{camera}.png"
        depth_path = self._folder / "groundtruth_depth" / depth_name
        image, depth = io.read_image(image_path), io.read_depth_png(depth_path)
        io.check_sample(image, depth, image_path, depth_path)
        return Sample(
            image=image,
            depth=depth,
            intrinsics=_read_intrinsics(self._folder / "intrinsics" / f"{stem}.txt"),
            id=f"{drive}_{frame}_{camera}",
            condition=CONDITION,
        )


def read_calibration(path: str | Path, camera: str) -> Float32[np.ndarray, "3 3"]:
    """Intrinsics of a rectified camera: the left 3x3 of `P_rect_02` or `P_rect_03`.

    Raises:
      FileNotFoundError, ValueError: if the file is missing or has no such matrix of 12 numbers.
    """
    key = f"P_rect_{camera[-2:]}"
    for line in _read_text(path).splitlines():
        name, _, values = line.partition(":")
        if name == key:
            return _numbers(path, values, 12).reshape(3, 4)[:, :3]
    raise ValueError(f"{path} has no {key}: it is not a calib_cam_to_cam.txt")


def _read_intrinsics(path: Path) -> Float32[np.ndarray, "3 3"]:
    return _numbers(path, _read_text(path), 9).reshape(3, 3)


def _read_text(path: str | Path) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: it comes in the archive of the images")
    return Path(path).read_text()


def _numbers(path: str | Path, text: str, count: int) -> Float32[np.ndarray, " n"]:
    try:
        values = np.array([float(word) for word in text.split()], np.float32)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {count} numbers were expected") from error
    if values.size != count or not np.isfinite(values).all():
        raise ValueError(f"{path}: {count} finite numbers were expected, found {text.split()}")
    return values


def _image_path(folder: _Folder, frame: str) -> Path:
    return folder.images / f"{frame}{folder.suffix}"


def _depth_path(folder: _Folder, frame: str) -> Path:
    return folder.depths / f"{frame}.png"
