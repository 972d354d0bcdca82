"""Writing rendered frames in KITTI's official folder layout.

::

    ROOT/raw/DATE/calib_cam_to_cam.txt
    ROOT/raw/DATE/DRIVE/image_02/data/0000000005.png
    ROOT/depth/SPLIT/DRIVE/proj_depth/groundtruth/image_02/0000000005.png    lidar-like, sparse
    ROOT/depth/SPLIT/DRIVE/proj_depth/dense/image_02/0000000005.png          every pixel but the sky

DRIVE is `DATE_drive_NNNN_sync`. Depth is 16-bit PNG, metres times 256, 0 where there is none, as in
KITTI's annotated depth. KITTI has one calibration a date, so a date stands for one camera here.
Files appear whole or not at all: each is written under another name, then renamed; the picture
comes last, and its presence says that its frame is finished.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

DEPTH_SCALE = 256.0
MAX_DEPTH = 65535 / DEPTH_SCALE  # what 16 bits hold: 255.996 m


@dataclass(frozen=True)
class KittiFrame:
    """Where one frame's files are."""

    root: Path
    split: str
    date: str
    drive: int
    index: int = 5  # KITTI's annotated depth leaves out a drive's first five frames

    @property
    def drive_name(self) -> str:
        return f"{self.date}_drive_{self.drive:04d}_sync"

    @property
    def image(self) -> Path:
        data = self.root / "raw" / self.date / self.drive_name / "image_02" / "data"
        return data / f"{self.index:010d}.png"

    def depth(self, kind: str) -> Path:
        """The file of "groundtruth" (sparse) or "dense" depth."""
        drive = self.root / "depth" / self.split / self.drive_name
        return drive / "proj_depth" / kind / "image_02" / f"{self.index:010d}.png"

    @property
    def calibration(self) -> Path:
        return self.root / "raw" / self.date / "calib_cam_to_cam.txt"


def write_frame(
    frame: KittiFrame,
    image: UInt8[np.ndarray, "h w 3"],
    dense: Float[np.ndarray, "h w"],
    sparse: Float[np.ndarray, "h w"],
    intrinsics: Float[np.ndarray, "3 3"],
) -> None:
    """Write a frame's files and its date's calibration.

    Args:
        frame: where to.
        image: uint8 `[h w 3]`.
        dense, sparse: float `[h w]` metres, 0 where there is none. Beyond MAX_DEPTH counts as none.
        intrinsics: `[3 3]` of the left colour camera.
    """
    _write(frame.calibration, calibration_text(intrinsics, image.shape[:2]).encode())
    _write(frame.depth("dense"), _png(_encode_depth(dense)))
    _write(frame.depth("groundtruth"), _png(_encode_depth(sparse)))
    _write(frame.image, _png(image))


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


def _encode_depth(depth: np.ndarray) -> np.ndarray:
    code = np.rint(depth * DEPTH_SCALE)
    return np.where((depth > 0) & (code <= 65535), np.maximum(code, 1), 0).astype(np.uint16)


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
