"""KITTI: camera images from the raw data with depth from the depth benchmark.

Layout of the unpacked official archives (https://www.cvlibs.net/datasets/kitti). `root` is the
folder of the raw data and `depth_root` that of the depth, by default the same:

    root/2011_09_26/calib_cam_to_cam.txt                       (2011_09_26_calib.zip)
    root/2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png   (..._sync.zip)
    depth_root/train/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png
    depth_root/val/2011_09_26_drive_0002_sync/...              (data_depth_annotated.zip)
    depth_root/depth_selection/val_selection_cropped/{image,groundtruth_depth,intrinsics}/...
    depth_root/depth_selection/test_depth_prediction_anonymous/{image,intrinsics}/0000000000.png
                                                               (data_depth_selection.zip)

Also supported: images converted to `.jpg`; drives directly under `depth_root`, without `train` and
`val` (as in BTS); images and calibration copied into the drives of `depth_root` (as in NLSPN and
DiffusionDepth); `data_depth_velodyne.zip` next to the annotated depth.

Depth is uint16 PNG, metres * 256, 0 where unmeasured (devkit of the depth benchmark). Image size
varies by date: 370x1224 to 376x1242. The stereo and object benchmarks are separate sources:
`kitti_stereo`, `kitti_object`.

Rendered scenes (`tools/render_scenes.py`) use this layout with two additions in a drive's folder:
`condition.json` sets its `condition` ("day-clear" without it), and `category_02/data` holds
material maps in Booster's classes, named like the images.
"""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from diffdepth_jax.data import io, listing, splits
from diffdepth_jax.data.listing import Frame, FrameSource
from diffdepth_jax.data.sources import Source
from diffdepth_jax.errors import DataError, MissingFileError

# Metres; the usual evaluation range. Depth in the files goes slightly beyond.
DEPTH_RANGE = (1e-3, 80.0)
CONDITION = "day-clear"

Camera = Literal["image_02", "image_03"]
SPLITS = (
    "train",
    "val",
    "val_selection",
    "test_anonymous",
    "eigen_train",
    "eigen_test",
    "zhou_train",
    "zhou_val",
)
_ZHOU = ("zhou_train", "zhou_val")
_SIDES = {"l": "image_02", "r": "image_03", "2": "image_02", "3": "image_03"}
_DRIVE = r"\d{4}_\d{2}_\d{2}_drive_\d{4}_(?:sync|extract)"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames of KITTI to read, and from where.

    Attributes:
        root: folder of the raw data.
        split: one of the following, or the path of a list file. `train` and `val`: the folders of
            the depth benchmark; note that `train` holds most drives of `eigen_test`.
            `val_selection`: its 1000 validation frames at 352x1216. `test_anonymous`: its 500 test
            images, with unpublished depth (0 everywhere). `eigen_train` and `eigen_test`: Eigen's
            split (`data/splits.py`); eigen_test has the 652 frames with annotated depth.
            `zhou_train` and `zhou_val`: Zhou's split of the training drives; frames without depth
            are left out and counted in `num_without_depth`.
        depth_root: folder of the depth; None for `root`.
        depth: folder under `proj_depth`: the annotated `groundtruth`, the single scans
            `velodyne_raw`, or another folder in the same format.
        cameras: the left and right colour cameras; either or both. Lists and `eigen_test` specify
            their own.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.

    A list file has one entry per line, in any of the usual forms:

        2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png DEPTH_PNG 721.5377
        2011_09_26/2011_09_26_drive_0002_sync 69 l
        2011_09_26_drive_0002_sync

    that is: image, depth and focal length (BTS, AdaBins, Marigold), where `None` means no depth,
    and the frame is left out and counted in `num_without_depth`; drive, frame with or without
    leading zeros, and side (monodepth2); or a drive, for all its frames with depth.
    """

    name: Literal["kitti"] = "kitti"
    root: str = "data/kitti"
    split: str = "train"
    depth_root: str | None = None
    depth: str = "groundtruth"
    cameras: tuple[Camera, ...] = ("image_02", "image_03")
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, SPLITS, lists=True)
        if not self.cameras:
            raise ValueError("cameras is empty; name image_02, image_03 or both")


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens KITTI; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> FrameSource:
    """Opens the frames selected by a config.

    `intrinsics` are all NaN for drives without `calib_cam_to_cam.txt`, with a warning in the log.

    Raises:
        MissingFileError: if a folder, list, image or depth map is missing.
        DataError: if a list or a calibration cannot be read, or there are no frames.
    """
    num_without_depth = 0
    if config.split == "val_selection":
        frames = _val_selection(config)
    elif config.split == "test_anonymous":
        frames = _test_anonymous(config)
    else:
        frames, num_without_depth = _raw_frames(config)
    where = f"split {config.split!r} under {config.depth_root or config.root}"
    if not frames:
        raise DataError(
            f"no frames in {where} with depth {config.depth!r} and cameras {config.cameras} "
            f"({num_without_depth} listed without depth)"
        )
    remedy = (
        "complete the download, or exclude the frames with a list file (None instead of their "
        "depth)"
    )
    return FrameSource(
        frames,
        _read,
        where=where,
        remedy=remedy,
        check_files=config.check_files,
        num_without_depth=num_without_depth,
    )


class _Wanted(NamedTuple):
    """An entry of a split; frame None means all frames with depth."""

    drive: str
    camera: str
    frame: int | None


class _Folder(NamedTuple):
    """One camera of one drive."""

    images: Path
    suffix: str
    depths: Path
    measured: dict[str, None]  # names of the frames with depth, in order
    intrinsics: np.ndarray
    condition: str
    categories: Path
    classified: frozenset[str]  # names of the frames with a material map


def _read(frame: Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    depth = io.read_depth_png(frame.depth) if frame.depth else listing.unmeasured(size)
    if frame.intrinsics is not None:
        return depth, frame.intrinsics
    return depth, io.read_numbers(listing.known(frame.calibration), (3, 3)).astype(np.float32)


def _raw_frames(config: Config) -> tuple[list[Frame], int]:
    """The frames of the raw data in a split, and the number of those without depth."""
    listing.require_folder(
        Path(config.root),
        "set root to the folder of the KITTI raw data, which holds 2011_09_26 and the other dates",
    )
    wanted, num_without_depth = _wanted(config)
    folders: dict[tuple[str, str], _Folder] = {}
    frames = []
    for drive, camera, number in wanted:
        if (drive, camera) not in folders:
            folders[drive, camera] = _folder(config, drive, camera)
        folder = folders[drive, camera]
        names = list(folder.measured) if number is None else [f"{number:010d}"]
        if config.split in _ZHOU and names[0] not in folder.measured:
            num_without_depth += 1
            continue
        frames += [
            Frame(
                id=f"{drive}_{name}_{camera}",
                image=f"{folder.images}/{name}{folder.suffix}",
                depth=f"{folder.depths}/{name}.png",
                intrinsics=folder.intrinsics,
                condition=folder.condition,
                categories=f"{folder.categories}/{name}.png" if name in folder.classified else None,
            )
            for name in names
        ]
    uncalibrated = sorted(
        {drive for (drive, _), folder in folders.items() if np.isnan(folder.intrinsics).any()}
    )
    if uncalibrated:
        logging.getLogger(__name__).warning(
            "no calib_cam_to_cam.txt for %d drives, starting with %s: their intrinsics are NaN",
            len(uncalibrated),
            uncalibrated[0],
        )
    return frames, num_without_depth


def _wanted(config: Config) -> tuple[list[_Wanted], int]:
    """The entries of a split, and how many it lists without depth."""
    if config.split in ("train", "val"):
        depth_root = Path(config.depth_root or config.root)
        folder = listing.require_folder(
            depth_root / config.split,
            f"unpack KITTI's data_depth_annotated.zip into {depth_root}, or set depth_root to the "
            "folder that holds its train and val",
        )
        drives = listing.folder_names(folder)
        return [
            _Wanted(drive, camera, None)
            for drive in drives
            for camera in config.cameras
            if (folder / drive / "proj_depth" / config.depth / camera).is_dir()
        ], 0
    if config.split == "eigen_train":
        return [
            _Wanted(drive, camera, None)
            for drive in splits.EIGEN_TRAIN
            for camera in config.cameras
        ], 0
    if config.split == "eigen_test":
        return [
            _Wanted(drive, "image_02", frame)
            for drive, frames in splits.EIGEN_TEST.items()
            for frame in frames
        ], sum(map(len, splits.EIGEN_TEST_WITHOUT_DEPTH.values()))
    if config.split in _ZHOU:
        frames = splits.zhou("train" if config.split == "zhou_train" else "val")
        return [_Wanted(*frame) for frame in frames if frame[1] in config.cameras], 0
    return _listed(config)


def _listed(config: Config) -> tuple[list[_Wanted], int]:
    wanted, num_without_depth = [], 0
    for number, line in listing.read_lines(Path(config.split), f"one of {', '.join(SPLITS)}"):
        words = line.split()
        drive = re.search(_DRIVE, words[0])
        image = re.search(r"(image_0[23])/data/(\d+)\.(png|jpg)$", words[0])
        if drive and image and len(words) > 1:
            if words[1] == "None":
                num_without_depth += 1
            else:
                wanted.append(_Wanted(drive[0], image[1], int(image[2])))
        elif drive and len(words) == 3 and words[1].isdigit() and words[2] in _SIDES:
            wanted.append(_Wanted(drive[0], _SIDES[words[2]], int(words[1])))
        elif drive and len(words) == 1 and words[0].endswith(drive[0]):
            wanted += [_Wanted(drive[0], camera, None) for camera in config.cameras]
        else:
            raise DataError(
                f"{config.split}, line {number}: {line!r} is not 'IMAGE DEPTH [FOCAL]', "
                "'DATE/DRIVE FRAME l|r' or 'DRIVE'"
            )
    return wanted, num_without_depth


def _folder(config: Config, drive: str, camera: str) -> _Folder:
    depth_root = Path(config.depth_root or config.root)
    parts = (config.split,) if config.split in ("train", "val") else ("train", "val", "")
    depths = [depth_root / part / drive / "proj_depth" / config.depth / camera for part in parts]
    found = next((path for path in depths if path.is_dir()), None)
    if found is None:
        raise MissingFileError(
            f"drive {drive} has no depth for {camera}: looked for {', '.join(map(str, depths))}. "
            "Unpack data_depth_annotated.zip there, or set depth_root"
        )
    prepared = found.parents[2]
    date = Path(config.root) / drive.split("_drive_")[0]
    images = date / drive / camera / "data"
    if not images.is_dir() and (prepared / camera / "data").is_dir():
        images = prepared / camera / "data"
    listing.require_folder(
        images,
        f"download the raw data of {drive} (synced and rectified), or set root to the folder that "
        "holds the dates",
    )
    calibrations = (date / "calib_cam_to_cam.txt", prepared / "calib_cam_to_cam.txt")
    calibration = next((path for path in calibrations if path.is_file()), None)
    # Images are rectified, so intrinsics are the left 3x3 of this camera's matrix.
    intrinsics = (
        listing.UNKNOWN
        if calibration is None
        else io.read_calibration(calibration, f"P_rect_{camera[-2:]}", (3, 4))[:, :3]
    )
    converted = not listing.file_names(images, ".png") and listing.file_names(images, ".jpg")
    recording = images.parents[1]
    note, categories = recording / "condition.json", recording / f"category_{camera[-2:]}" / "data"
    return _Folder(
        images,
        ".jpg" if converted else ".png",
        found,
        dict.fromkeys(_frame_names(found)),
        intrinsics.astype(np.float32),
        io.read_condition(note) if note.is_file() else CONDITION,
        categories,
        frozenset(_frame_names(categories) if categories.is_dir() else ()),
    )


def _frame_names(folder: Path) -> list[str]:
    return [name.removesuffix(".png") for name in listing.file_names(folder, ".png")]


def _val_selection(config: Config) -> list[Frame]:
    folder = _selection(config, "val_selection_cropped")
    pattern = re.compile(rf"({_DRIVE})_image_(\d+)_(image_0[23])\.png")
    matches = map(pattern.fullmatch, listing.file_names(folder / "image", ".png"))
    frames = [match.groups() for match in matches if match and match[3] in config.cameras]
    return [
        Frame(
            id=f"{drive}_{number}_{camera}",
            image=f"{folder}/image/{drive}_image_{number}_{camera}.png",
            depth=f"{folder}/groundtruth_depth/{drive}_groundtruth_depth_{number}_{camera}.png",
            calibration=f"{folder}/intrinsics/{drive}_image_{number}_{camera}.txt",
        )
        for drive, number, camera in frames
    ]


def _test_anonymous(config: Config) -> list[Frame]:
    folder = _selection(config, "test_depth_prediction_anonymous")
    return [
        Frame(
            id=name,
            image=f"{folder}/image/{name}.png",
            calibration=f"{folder}/intrinsics/{name}.txt",
        )
        for name in _frame_names(folder / "image")
    ]


def _selection(config: Config, name: str) -> Path:
    depth_root = Path(config.depth_root or config.root)
    if not depth_root.is_dir():
        raise MissingFileError(f"{depth_root} does not exist: set root or depth_root")
    folder = depth_root / "depth_selection" / name
    remedy = (
        f"unpack KITTI's data_depth_selection.zip into {depth_root}, or set depth_root to the "
        "folder that holds depth_selection"
    )
    listing.require_folder(folder, remedy)
    listing.require_folder(folder / "image", remedy)
    return folder
