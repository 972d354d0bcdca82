"""ClearGrasp: transparent objects on a table, real (RealSense cameras) and synthetic.

Layout of the unpacked official cleargrasp-dataset-test-val.tar and cleargrasp-dataset-train.tar
(https://sites.google.com/view/cleargrasp):

    root/real-val/d435/camera_intrinsics.yaml
    root/real-val/d435/000000080-transparent-rgb-img.jpg
    root/real-val/d435/000000080-opaque-depth-img.exr
    root/real-val/d435/000000080-mask.png
    root/real-test/{d415,d435}/...                               (named as in real-val)
    root/synthetic-val/square-plastic-bottle-val/rgb-imgs/000000000-rgb.jpg
    root/synthetic-val/.../depth-imgs-rectified/000000000-depth-rectified.exr
    root/synthetic-val/.../segmentation-masks/000000000-segmentation-mask.png
    root/synthetic-test/...                                      (named as in synthetic-val)
    root/square-plastic-bottle-train/...                         (training; as in synthetic-val)

The real ground truth is the camera's depth after the transparent objects were replaced by painted
copies (`opaque-depth`). Depth is along the optical axis, in metres, as half floats; NaN **or** 0
where unmeasured. The mask is 255 on transparent objects. Real intrinsics are in the folder; those
of synthetic images follow from the authors' field of view (69.40 by 42.56 degrees; repository
Shreeyak/cleargrasp). The literature evaluates on the 286 real frames, `split="real"`.

Reading depth needs the package OpenEXR: pip install 'diffdepth_jax[exr]'.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax.data import io, listing
from diffdepth_jax.data.listing import Frame
from diffdepth_jax.data.sources import Sample, Source
from diffdepth_jax.errors import DataError

DEPTH_RANGE = (1e-3, 10.0)  # metres
CONDITION = "indoor"

# Split -> folders under root with real frames, or with folders of synthetic objects.
_REAL = {
    "real": ("real-val/*", "real-test/*"),
    "real-val": ("real-val/*",),
    "real-test": ("real-test/*",),
}
_SYNTHETIC = {
    "synthetic-train": "*-train",
    "synthetic-val": "synthetic-val/*",
    "synthetic-test": "synthetic-test/*",
}
_REAL_IMAGE = "-transparent-rgb-img.jpg"
_FIELD_OF_VIEW = (69.40, 42.56)  # degrees, horizontal and vertical


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames of ClearGrasp to read, and from where.

    Attributes:
        root: the folder with the layout above.
        split: `real` (all 286), `real-val`, `real-test`, `synthetic-train`, `synthetic-val` or
            `synthetic-test`.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["cleargrasp"] = "cleargrasp"
    root: str = "data/cleargrasp"
    split: str = "real"
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, (*_REAL, *_SYNTHETIC))


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens ClearGrasp; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> Source:
    """Opens the frames selected by a config.

    Raises:
        MissingFileError: if a folder or a file is missing.
        DataError: if there are no frames.
    """
    return ClearGrasp(config)


class ClearGrasp:
    """Frames with depth and a `tom_mask`."""

    def __init__(self, config: Config):
        root = listing.require_folder(Path(config.root), "set root to the folder of ClearGrasp")
        if config.split in _REAL:
            self.frames = _real(root, _REAL[config.split])
        else:
            self.frames = _synthetic(root, _SYNTHETIC[config.split])
        where = f"split {config.split!r} under {root}"
        remedy = "unpack the official archives and set root to the folder that holds real-val"
        if not self.frames:
            raise DataError(f"no frames in {where}: {remedy}")
        listing.require_unique((frame.id for frame in self.frames), where)
        if config.check_files:
            files = [file for frame in self.frames for file in (*frame.files, _mask(frame))]
            listing.require_files(files, where, remedy)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        image, depth = io.read_image(frame.image), io.read_exr(listing.known(frame.depth))
        depth = np.where(np.isfinite(depth), depth, np.float32(0))
        io.check_sample(image, depth, frame.image, frame.depth)
        if frame.calibration is None:
            intrinsics = _synthetic_intrinsics(depth.shape)
        else:
            intrinsics = read_intrinsics(frame.calibration, depth.shape)
        return Sample(
            image=image,
            depth=depth,
            intrinsics=intrinsics,
            id=frame.id,
            condition=frame.condition,
            tom_mask=io.read_labels(_mask(frame), depth.shape) > 0,
        )


def read_intrinsics(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Intrinsics float32 [3 3] from a `camera_intrinsics.yaml`.

    Args:
        path: the file.
        size: (height, width) of the images.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if a number is missing, or the file is for images of a different size.
    """
    text = io.read_text(path)
    values = dict(re.findall(r"^(\w+):\s*([\d.]+)", text, flags=re.MULTILINE))
    names = ("xres", "yres", "fx", "fy", "cx", "cy")
    if absent := [name for name in names if name not in values]:
        raise DataError(
            f"{path} has no number {absent[0]!r}: damaged, or not a file of camera intrinsics"
        )
    width, height, fx, fy, cx, cy = (float(values[name]) for name in names)
    if (height, width) != size:
        raise DataError(
            f"{path} is for images of {height:g}x{width:g}, but these are {size[0]}x{size[1]}"
        )
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)


def _synthetic_intrinsics(size: tuple[int, int]) -> np.ndarray:
    """Intrinsics with the principal point at the image centre."""
    height, width = size
    fx, fy = (
        side / 2 / math.tan(math.radians(angle) / 2)
        for side, angle in zip((width, height), _FIELD_OF_VIEW, strict=True)
    )
    centre = (width - 1) / 2, (height - 1) / 2
    return np.array([[fx, 0, centre[0]], [0, fy, centre[1]], [0, 0, 1]], np.float32)


def _real(root: Path, patterns: tuple[str, ...]) -> list[Frame]:
    paths = [path for each in patterns for path in sorted(root.glob(f"{each}/*{_REAL_IMAGE}"))]
    stems = [str(path).removesuffix(_REAL_IMAGE) for path in paths]
    return [
        Frame(
            id="_".join(Path(stem).parts[-3:]),
            image=str(path),
            depth=f"{stem}-opaque-depth-img.exr",
            calibration=str(path.with_name("camera_intrinsics.yaml")),
            condition=CONDITION,
        )
        for path, stem in zip(paths, stems, strict=True)
    ]


def _synthetic(root: Path, pattern: str) -> list[Frame]:
    paths = sorted(root.glob(f"{pattern}/rgb-imgs/*-rgb.jpg"))
    scenes = [path.parent.parent for path in paths]
    names = [path.name.removesuffix("-rgb.jpg") for path in paths]
    return [
        Frame(
            id=f"{scene.name}_{name}",
            image=str(path),
            depth=str(scene / "depth-imgs-rectified" / f"{name}-depth-rectified.exr"),
            condition=CONDITION,
        )
        for path, scene, name in zip(paths, scenes, names, strict=True)
    ]


def _mask(frame: Frame) -> str:
    if frame.image.endswith(_REAL_IMAGE):
        return frame.image.removesuffix(_REAL_IMAGE) + "-mask.png"
    path = Path(frame.image)
    name = path.name.removesuffix("-rgb.jpg")
    return str(path.parent.parent / "segmentation-masks" / f"{name}-segmentation-mask.png")
