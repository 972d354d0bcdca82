"""nuScenes: camera keyframes, with depth from the projected lidar scan of the same sample.

Layout of the unpacked official archives (https://www.nuscenes.org/nuscenes):

    root/v1.0-trainval/{scene,sample,sample_data,ego_pose,calibrated_sensor,sensor}.json
                                  (v1.0-trainval_meta.tgz; v1.0-test and v1.0-mini are the same)
    root/samples/CAM_FRONT/*.jpg          900x1600     (v1.0-trainval01_blobs.tgz ... 10)
    root/samples/LIDAR_TOP/*.pcd.bin      float32 [n 5]: x, y, z, intensity, ring

The tables are read row by row, and only rows of the selected keyframes stay in memory (sample_data
of trainval has 2.6 million rows). Opening trainval takes about half a minute.

Because the car moves between scan and image, points are transformed from the lidar to the car at
the scan's time, to the world, to the car at the image's time, and to the camera. Depth is z in
camera coordinates, in metres, 0 where no point falls; a pixel keeps the point nearest to the
camera. `condition` is day-clear, day-rain, night-clear or night-rain, depending on whether the
scene's description contains "night" and "rain", and unknown for the scenes of `test`, which have no
description.
"""

import dataclasses
import logging
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from diffdepth_jax.data import geometry, io, listing
from diffdepth_jax.data.listing import Frame, FrameSource
from diffdepth_jax.data.sources import Source
from diffdepth_jax.data.splits import NUSCENES
from diffdepth_jax.errors import DataError

DEPTH_RANGE = (0.1, 80.0)  # metres, as in md4all's evaluation
CONDITIONS = ("day-clear", "day-rain", "night-clear", "night-rain", "unknown")

Camera = Literal[
    "CAM_FRONT",
    "CAM_FRONT_LEFT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
]
_LIDAR = "LIDAR_TOP"
_VERSIONS = {
    "train": "v1.0-trainval",
    "val": "v1.0-trainval",
    "test": "v1.0-test",
    "mini_train": "v1.0-mini",
    "mini_val": "v1.0-mini",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames to read, and from where.

    Attributes:
        root: the folder with the layout above.
        split: an official split: `train` (700 scenes), `val` (150 scenes, 6,019 samples), `test`
            (150), `mini_train` (8), `mini_val` (2); or the path of a list file with a scene name or
            sample token per line.
        version: folder of the tables; None for that of the official split, or v1.0-trainval for a
            list.
        cameras: which of the six.
        conditions: only use frames with these conditions; empty for all.
        projection: `nearest` as above; `devkit` as in nuScenes' devkit and md4all
            (`geometry.projected_depth`), for comparable results.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["nuscenes"] = "nuscenes"
    root: str = "data/nuscenes"
    split: str = "train"
    version: str | None = None
    cameras: tuple[Camera, ...] = ("CAM_FRONT",)
    conditions: tuple[str, ...] = ()
    projection: Literal["nearest", "devkit"] = "nearest"
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, _VERSIONS, lists=True)
        listing.require_conditions(self.conditions, CONDITIONS)
        known = get_args(Camera)
        if not self.cameras or not set(self.cameras) <= set(known):
            raise ValueError(f"cameras is {self.cameras}; set one or more of {', '.join(known)}")
        if self.projection not in ("nearest", "devkit"):
            raise ValueError(f"projection is {self.projection!r}; it must be nearest or devkit")


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens nuScenes; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> FrameSource:
    """Opens the frames selected by a config, in the order of the sample table.

    Raises:
        MissingFileError: if a folder, table, list, image or scan is missing.
        DataError: if a table or list cannot be read, tables contradict each other, or there are no
            frames.
    """
    listing.require_folder(Path(config.root), "set root to the folder of nuScenes")
    version = config.version or _VERSIONS.get(config.split, "v1.0-trainval")
    tables = listing.require_folder(
        Path(config.root, version),
        f"unpack the metadata of {version} into {config.root}, or set root or version",
    )
    conditions = _wanted_samples(config, tables)
    where = f"split {config.split!r} of {config.root}"
    if config.conditions:
        where += f" in {', '.join(config.conditions)}"
        conditions = {
            token: condition
            for token, condition in conditions.items()
            if condition in config.conditions
        }
    return FrameSource(
        _frames(config, tables, conditions),
        _Reader(config.projection),
        where=where,
        remedy="complete the download of the file blobs, or list the scenes you have in a file",
        check_files=config.check_files,
    )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Keyframe(Frame):
    """camera_from_lidar: [4 4], through both poses of the car. size: (height, width) of the
    image."""

    camera_from_lidar: np.ndarray = dataclasses.field(kw_only=True)
    size: tuple[int, int] = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class _Reader:
    projection: Literal["nearest", "devkit"]

    def __call__(self, frame: _Keyframe, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        if size != frame.size:
            raise DataError(
                f"{frame.image} is {size[0]}x{size[1]}, but the tables say {frame.size[0]}x"
                f"{frame.size[1]}, so its intrinsics are unknown: use the original image"
            )
        points = io.read_points(listing.known(frame.depth), 5)[:, :3]
        points = geometry.transform_points(frame.camera_from_lidar, points)
        intrinsics = listing.known(frame.intrinsics)
        depth = geometry.projected_depth(points, intrinsics, size, rule=self.projection)
        return depth, intrinsics.astype(np.float32)


def _wanted_samples(config: Config, tables: Path) -> dict[str, str]:
    """Token -> condition for the samples of a split, in the order of the table."""
    scenes = {
        scene["token"]: (scene["name"], _condition(scene["description"]))
        for scene in _rows(tables, "scene", ("token", "name", "description"))
    }
    samples = {}
    for sample in _rows(tables, "sample", ("token", "scene_token")):
        if sample["scene_token"] not in scenes:
            raise _contradiction(tables, "sample", sample["token"], "scene")
        samples[sample["token"]] = scenes[sample["scene_token"]]
    if config.split in NUSCENES:
        listed = set(NUSCENES[config.split])
    else:
        lines = listing.read_lines(Path(config.split), f"one of {', '.join(_VERSIONS)}")
        listed = {line for _, line in lines}
    found = listed & ({name for name, _ in scenes.values()} | set(samples))
    if missing := sorted(listed - found):
        if config.split not in NUSCENES or not found:
            raise DataError(
                f"{missing[0]} and {len(missing) - 1} other entries of split {config.split!r} are "
                f"neither scenes nor samples of {tables}: use the tables that match the split"
            )
        logging.getLogger(__name__).warning(
            "%s has %d of the %d scenes of split %s", tables, len(found), len(listed), config.split
        )
    return {
        token: condition
        for token, (name, condition) in samples.items()
        if name in listed or token in listed
    }


def _condition(description: str | None) -> str:
    text = (description or "").lower()
    if not text:
        return "unknown"
    return ("night" if "night" in text else "day") + ("-rain" if "rain" in text else "-clear")


def _frames(config: Config, tables: Path, conditions: dict[str, str]) -> list[_Keyframe]:
    """The keyframes of the samples in `conditions`."""
    fields = ("token", "sensor_token", "rotation", "translation", "camera_intrinsic")
    mountings = {row["token"]: row for row in _rows(tables, "calibrated_sensor", fields)}
    recordings = _recordings(config, tables, conditions, mountings)
    tokens = {row["ego_pose_token"] for row in recordings.values()}
    poses = {
        row["token"]: row
        for row in _rows(tables, "ego_pose", ("token", "rotation", "translation"))
        if row["token"] in tokens
    }
    if lost := [row for row in recordings.values() if row["ego_pose_token"] not in poses]:
        raise _contradiction(tables, "sample_data", lost[0]["token"], "ego_pose")

    def world_from(row: dict[str, Any]) -> np.ndarray:
        car, mounting = poses[row["ego_pose_token"]], mountings[row["calibrated_sensor_token"]]
        return _pose(tables, "ego_pose", car) @ _pose(tables, "calibrated_sensor", mounting)

    frames = []
    for token, condition in conditions.items():
        for camera in config.cameras:
            if absent := [name for name in (_LIDAR, camera) if (token, name) not in recordings]:
                raise _contradiction(tables, "sample", token, f"sample_data ({absent[0]})")
            scan, image = recordings[token, _LIDAR], recordings[token, camera]
            mounting = mountings[image["calibrated_sensor_token"]]
            frames.append(
                _Keyframe(
                    id=Path(image["filename"]).stem,
                    image=f"{config.root}/{image['filename']}",
                    depth=f"{config.root}/{scan['filename']}",
                    intrinsics=_intrinsics(tables, mounting),
                    condition=condition,
                    camera_from_lidar=np.linalg.solve(world_from(image), world_from(scan)),
                    size=(image["height"], image["width"]),
                )
            )
    return frames


def _pose(tables: Path, table: str, row: dict[str, Any]) -> np.ndarray:
    try:
        return geometry.rigid_transform(row["rotation"], row["translation"])
    except (TypeError, ValueError) as error:
        raise _damaged(tables, table, row, error) from error


def _intrinsics(tables: Path, row: dict[str, Any]) -> np.ndarray:
    try:
        return np.array(row["camera_intrinsic"], np.float64).reshape(3, 3)
    except (TypeError, ValueError) as error:
        raise _damaged(tables, "calibrated_sensor", row, error) from error


def _recordings(
    config: Config, tables: Path, samples: Container[str], mountings: dict[str, dict[str, Any]]
) -> dict[tuple[str, str], dict[str, Any]]:
    """(sample, channel) -> keyframe records of the lidar and the selected cameras."""
    channels = {
        row["token"]: row["channel"] for row in _rows(tables, "sensor", ("token", "channel"))
    }
    recordings = {}
    fields = ("token", "sample_token", "calibrated_sensor_token", "ego_pose_token", "filename")
    for row in _rows(tables, "sample_data", (*fields, "is_key_frame", "height", "width")):
        if not row["is_key_frame"] or row["sample_token"] not in samples:
            continue
        mounting = mountings.get(row["calibrated_sensor_token"])
        if mounting is None or mounting["sensor_token"] not in channels:
            raise _contradiction(tables, "sample_data", row["token"], "calibrated_sensor or sensor")
        channel = channels[mounting["sensor_token"]]
        if channel == _LIDAR or channel in config.cameras:
            recordings[row["sample_token"], channel] = row
    return recordings


def _contradiction(tables: Path, table: str, token: str, other: str) -> DataError:
    return DataError(
        f"{tables}/{table}.json: {token} has no match in {other}: the tables do not belong "
        "together, unpack the metadata archive again"
    )


def _damaged(tables: Path, table: str, row: dict[str, Any], error: Exception) -> DataError:
    return DataError(
        f"{tables}/{table}.json: {row['token']}: {error}: damaged, unpack the metadata archive "
        "again"
    )


def _rows(tables: Path, name: str, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    return io.read_json_rows(tables / f"{name}.json", fields)
