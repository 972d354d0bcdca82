"""Booster: indoor scenes with transparent and mirror objects, 3008x4112, from a stereo rig.

Layout of the unpacked official booster_gt.zip (https://cvlab-unibo.github.io/booster-web); `root`
may also be the folder that holds the scenes:

    root/train/balanced/Bathroom/camera_00/{im0.png,im1.png,...}   (left images, several lights)
    root/train/balanced/Bathroom/disp_00.npy                       (disparity of the left image)
    root/train/balanced/Bathroom/mask_cat.png                      (materials, classes 0 to 3)
    root/train/balanced/Bathroom/calib_00-02.xml                   (OpenCV: proj_matL, baselineLR)

From the authors' evaluation (repository CVLAB-Unibo/Depth4ToM-code): disparity is float32 in
pixels, 0 where unknown; the baseline is in millimetres; depth = baseline * fx / disparity. All 228
left images of the training split have ground truth and are used for evaluation in the literature;
the test split has none.

Images and maps have their full size. The published evaluation takes every fourth pixel of disparity
and classes (`[::4, ::4]`, equal to OpenCV's nearest neighbour at exactly a quarter) and divides
disparity and fx by 4, so that baseline and depth are unchanged.
"""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax.data import geometry, io, listing
from diffdepth_jax.data.listing import Frame
from diffdepth_jax.data.sources import Sample, Source
from diffdepth_jax.errors import DataError

DEPTH_RANGE = (1e-3, 10.0)  # metres
CONDITION = "indoor"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames of Booster to read, and from where.

    Attributes:
        root: the folder with the layout above.
        split: `train`, or the path of a list file like Depth4ToM's `train_stereo.txt`: one image
            per line, `SCENE/camera_00/im0.png SCENE/disp_00.npy SCENE/calib_00-02.xml`.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["booster"] = "booster"
    root: str = "data/booster"
    split: str = "train"
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, ("train",), lists=True)


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens Booster; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> Source:
    """Opens the frames selected by a config.

    Raises:
        MissingFileError: if a folder, the list or a file is missing.
        DataError: if a list cannot be read, or there are no frames.
    """
    return Booster(config)


class Booster:
    """Left images with depth, `disparity`, `baseline`, `categories` and `tom_mask`."""

    def __init__(self, config: Config):
        root = listing.require_folder(Path(config.root), "set root to the folder of Booster")
        nested = root / "train" / "balanced"
        self._root = nested if nested.is_dir() else root
        listed = config.split != "train"
        self.frames = self._listed(Path(config.split)) if listed else self._scanned()
        where = f"split {config.split!r} under {self._root}"
        remedy = "unpack booster_gt.zip and set root to the folder that holds train/balanced"
        if not self.frames:
            raise DataError(f"no frames in {where}: {remedy}")
        listing.require_unique((frame.id for frame in self.frames), where)
        if config.check_files:
            masks = (str(_mask(frame)) for frame in self.frames)
            files = [file for frame in self.frames for file in frame.files]
            listing.require_files([*files, *dict.fromkeys(masks)], where, remedy)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        image, stored = io.read_image(frame.image), io.read_npy(listing.known(frame.depth))
        if stored.ndim != 2 or stored.dtype.kind != "f":
            raise DataError(
                f"{frame.depth} must hold floating-point disparity [h w], not {stored.dtype} "
                f"{stored.shape}"
            )
        disparity = np.where(np.isfinite(stored) & (stored > 0), stored, 0).astype(np.float32)
        intrinsics, baseline = read_calibration(listing.known(frame.calibration))
        depth = geometry.disparity_depth(disparity, float(intrinsics[0, 0]) * baseline)
        io.check_sample(image, depth, frame.image, frame.depth)
        categories = io.read_categories(_mask(frame), depth.shape)
        return Sample(
            image=image,
            depth=depth,
            intrinsics=intrinsics.astype(np.float32),
            id=frame.id,
            condition=frame.condition,
            disparity=disparity,
            baseline=baseline,
            categories=categories,
            tom_mask=categories >= 2,
        )

    def _scanned(self) -> list[Frame]:
        images = self._root.glob("*/camera_00/im*.png")
        # im10 comes after im9
        ordered = sorted(images, key=lambda path: (path.parts[-3], len(path.stem), path.stem))
        return [self._frame(path, "disp_00.npy", "calib_00-02.xml") for path in ordered]

    def _listed(self, path: Path) -> list[Frame]:
        frames = []
        for number, line in listing.read_lines(path, "train"):
            words = line.split()
            if len(words) != 3 or not re.fullmatch(r"[^/]+/camera_00/[^/]+", words[0]):
                raise DataError(
                    f"{path}, line {number}: {line!r} is not 'SCENE/camera_00/IMAGE DISPARITY "
                    "CALIBRATION'"
                )
            image, *others = (self._root / word for word in words)
            frames.append(self._frame(image, *others))
        return frames

    def _frame(self, image: Path, disparity: str | Path, calibration: str | Path) -> Frame:
        scene = image.parent.parent
        return Frame(
            id=f"{scene.name}_{image.stem}",
            image=str(image),
            depth=str(scene / disparity),
            calibration=str(scene / calibration),
            condition=CONDITION,
        )


def read_calibration(path: str | Path) -> tuple[np.ndarray, float]:
    """Intrinsics float64 [3 3] of the rectified left camera, and the baseline in metres.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it is not valid XML, or has no `proj_matL` [3 4] or no `baselineLR` above 0.
    """
    with io.reading(path, ElementTree.ParseError):
        storage = ElementTree.parse(path).getroot()
    matrix = io.numbers(storage.findtext("proj_matL/data", ""), (3, 4), f"{path}, proj_matL")
    (baseline,) = io.numbers(storage.findtext("baselineLR", ""), (1,), f"{path}, baselineLR")
    if baseline <= 0 or matrix[0, 0] <= 0:
        raise DataError(
            f"{path}: baselineLR {baseline:g} and the focal length {matrix[0, 0]:g} must be "
            "positive"
        )
    return matrix[:, :3], float(baseline) / 1000


def _mask(frame: Frame) -> Path:
    return Path(frame.image).parent.parent / "mask_cat.png"
