"""Writes rendered frames in the official folder layouts of KITTI and NYU Depth V2.

`kitti`::

    ROOT/raw/DATE/calib_cam_to_cam.txt
    ROOT/raw/DATE/DRIVE/condition.json                                       the weather
    ROOT/raw/DATE/DRIVE/image_02/data/0000000005.png
    ROOT/raw/DATE/DRIVE/category_02/data/0000000005.png                      (if any) material mask
    ROOT/depth/SPLIT/DRIVE/proj_depth/groundtruth/image_02/0000000005.png    lidar-like, sparse
    ROOT/depth/SPLIT/DRIVE/proj_depth/dense/image_02/0000000005.png          every pixel but the sky
    ROOT/depth/SPLIT/DRIVE/proj_depth/velodyne_raw/image_02/...              (if asked) one scan,
                                                                             with a lidar's failures
    ROOT/test.txt                                                            frames of split test

DRIVE is `DATE_drive_NNNN_sync`, one per scene. Depth is 16-bit PNG, metres times 256, as in KITTI's
annotated depth; 0 where there is none, or beyond 255.99 m. KITTI has one calibration per date, so
each date is one camera here. Clear frames are in DIR itself, and those of other conditions in
DIR/CONDITION, with the same image names; depth is the same and only in DIR. The `kitti` source
reads them with root=DIR/CONDITION/raw and depth_root=DIR/depth, including the condition's name and
the material mask, which belong to the image. Depth that depends on the condition (velodyne_raw) is
in DIR/CONDITION/depth. KITTI's depth has the splits train and val; read test with
split=DIR/test.txt and depth_root=DIR/depth/test.

`nyu`, the "sync" files of BTS::

    ROOT/sync/SCENE/{rgb_00000.png,sync_depth_00000.png,intrinsics.txt,condition.json}
    ROOT/official_splits/{val,test}/SCENE/...
    ROOT/official_splits/.../mask_cat_00000.png                              (if any) material mask
    ROOT/{train,val,test}.txt                                                lists of the frames

with 16-bit depth in millimetres for every pixel, up to 65.5 m. ROOT is DIR for clear frames and
DIR/CONDITION for other conditions, each including its depth, as the `nyu` source expects
(layout="sync"; split="train", "val", "test", or the path of a list).

Pictures are PNG, as above, or JPEG with suffix `.jpg`, as in BTS's copy of NYU and many copies of
KITTI.

Material masks are 8-bit PNG with the Booster benchmark's classes: 2 and 3 for transparent objects
and mirrors, 0 and 1 for others.

Files are written atomically. The image is written last: if it exists, its frame is complete.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from diffdepth_jax import atomic
from diffdepth_jax.errors import naming_file

CLEAR = "clear"

ImageFormat = Literal["png", "jpg"]


@dataclass(frozen=True, eq=False)
class Picture:
    """One rendered frame under one condition.

    Attributes:
        image: uint8 `[h w 3]`.
        dense: float `[h w]` exact planar depth in metres, 0 for the sky.
        sparse: float `[h w]` lidar depth in clear air.
        scan: float `[h w]` lidar depth under the condition, including failures; or None.
        category: uint8 `[h w]` material classes, or None.
        intrinsics: `[3 3]`, with (0, 0) at the centre of the top-left pixel.
        weather: the condition, JSON-compatible.
    """

    image: UInt8[np.ndarray, "h w 3"]
    dense: Float[np.ndarray, "h w"]
    sparse: Float[np.ndarray, "h w"]
    scan: Float[np.ndarray, "h w"] | None
    category: UInt8[np.ndarray, "h w"] | None
    intrinsics: Float[np.ndarray, "3 3"]
    weather: Mapping[str, Any]


class Frame(Protocol):
    """The files of a scene's frame under any condition."""

    def image(self, condition: str) -> Path:
        """The picture."""

    def dense(self, condition: str) -> Path:
        """The dense depth, 16-bit PNG in units of 1 / SCALE metres."""

    def write(self, condition: str, picture: Picture) -> None:
        """Writes all files."""


@dataclass(frozen=True)
class KittiFrame:
    """A frame in the layout `kitti`.

    Attributes:
        root: DIR.
        split: train, val or test.
        date: a date, which represents a camera.
        drive: number of the drive, unique across splits.
        index: number in the drive; KITTI's annotated depth leaves out the first five.
        image_format: format of the image.
    """

    root: Path
    split: str
    date: str
    drive: int
    index: int = 5
    image_format: ImageFormat = "png"

    SCALE = 256.0  # for depth; 16 bits hold up to 255.996 m

    @property
    def drive_name(self) -> str:
        return f"{self.date}_drive_{self.drive:04d}_sync"

    def image(self, condition: str = CLEAR) -> Path:
        drive = self._base(condition) / "raw" / self.date / self.drive_name
        return drive / "image_02" / "data" / f"{self.index:010d}.{self.image_format}"

    def depth(self, kind: str, condition: str = CLEAR) -> Path:
        """The PNG of "groundtruth" or "dense" (clear only) or "velodyne_raw"."""
        drive = self._base(condition) / "depth" / self.split / self.drive_name
        return drive / "proj_depth" / kind / "image_02" / f"{self.index:010d}.png"

    def dense(self, condition: str = CLEAR) -> Path:
        del condition  # same for all
        return self.depth("dense")

    def write(self, condition: str, picture: Picture) -> None:
        image = self.image(condition)
        text = calibration_text(picture.intrinsics, picture.image.shape[:2])
        _write(image.parents[3] / "calib_cam_to_cam.txt", text.encode())
        _write(image.parents[2] / "condition.json", _json(condition, picture))
        _write(self.depth("dense"), _depth_png(picture.dense, self.SCALE))
        _write(self.depth("groundtruth"), _depth_png(picture.sparse, self.SCALE))
        if picture.scan is not None:
            _write(self.depth("velodyne_raw", condition), _depth_png(picture.scan, self.SCALE))
        if picture.category is not None:
            mask = image.parents[2] / "category_02" / "data" / f"{self.index:010d}.png"
            _write(mask, _png(picture.category))
        _write(image, _encoded(picture.image, self.image_format))

    def _base(self, condition: str) -> Path:
        return self.root if condition == CLEAR else self.root / condition


@dataclass(frozen=True)
class NyuFrame:
    """A frame in the layout `nyu`; `scene` is its folder's name, `image_format` is the image's."""

    root: Path
    split: str
    scene: str
    image_format: ImageFormat = "png"

    SCALE = 1000.0  # for depth

    def image(self, condition: str = CLEAR) -> Path:
        return self._folder(condition) / f"rgb_00000.{self.image_format}"

    def dense(self, condition: str = CLEAR) -> Path:
        return self._folder(condition) / "sync_depth_00000.png"

    def write(self, condition: str, picture: Picture) -> None:
        folder = self._folder(condition)
        rows = [" ".join(f"{value:.9g}" for value in row) for row in picture.intrinsics]
        _write(folder / "intrinsics.txt", ("\n".join(rows) + "\n").encode())
        _write(folder / "condition.json", _json(condition, picture))
        _write(self.dense(condition), _depth_png(picture.dense, self.SCALE))
        if picture.category is not None:
            _write(folder / "mask_cat_00000.png", _png(picture.category))
        _write(self.image(condition), _encoded(picture.image, self.image_format))

    def _folder(self, condition: str) -> Path:
        root = self.root if condition == CLEAR else self.root / condition
        split = Path("sync") if self.split == "train" else Path("official_splits") / self.split
        return root / split / self.scene


def write_list(root: Path, condition: str, split: str, frames: list[NyuFrame]) -> None:
    """Writes the list of a split's frames, one `IMAGE DEPTH` per line, relative to its folder."""
    base = root if condition == CLEAR else root / condition
    lines = [
        f"{frame.image(condition).relative_to(base)} {frame.dense(condition).relative_to(base)}\n"
        for frame in frames
    ]
    _write(base / f"{split}.txt", "".join(lines).encode())


def write_kitti_list(root: Path, split: str, frames: list[KittiFrame]) -> None:
    """Writes the list of a split's frames, one `DATE/DRIVE NUMBER l` per line (l: left camera)."""
    lines = [f"{frame.date}/{frame.drive_name} {frame.index} l\n" for frame in frames]
    _write(root / f"{split}.txt", "".join(lines).encode())


def calibration_text(intrinsics: Float[np.ndarray, "3 3"], size: tuple[int, int]) -> str:
    """KITTI's `calib_cam_to_cam.txt` for the left colour camera of size (height, width)."""

    def line(name: str, values: np.ndarray) -> str:
        return f"{name}: " + " ".join(f"{value:.6e}" for value in np.ravel(values))

    image_size = np.array(size[::-1], float)
    projection = np.concatenate([intrinsics, np.zeros((3, 1))], axis=1)
    return "\n".join(
        [
            "calib_time: 01-Jan-2000 00:00:00",
            "corner_dist: 1.000000e-01",
            line("S_02", image_size),
            line("K_02", intrinsics),
            line("D_02", np.zeros(5)),
            line("R_02", np.eye(3)),
            line("T_02", np.zeros(3)),
            line("S_rect_02", image_size),
            line("R_rect_02", np.eye(3)),
            line("P_rect_02", projection),
            "",
        ]
    )


def _json(condition: str, picture: Picture) -> bytes:
    return (json.dumps({"condition": condition, **picture.weather}, indent=1) + "\n").encode()


def _depth_png(depth: np.ndarray, scale: float) -> bytes:
    """Depth times `scale` as 16 bits; depth out of range becomes 0."""
    code = np.rint(depth * scale)
    inside = (depth > 0) & (code <= 65535)
    return _png(np.where(inside, np.maximum(code, 1), 0).astype(np.uint16))


def _encoded(image: np.ndarray, image_format: ImageFormat) -> bytes:
    """Encodes an image as a file; JPEG without chroma subsampling."""
    if image_format == "png":
        return _png(image)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90, subsampling=0, optimize=True)
    return buffer.getvalue()


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    with naming_file(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, lambda file: file.write(content))
