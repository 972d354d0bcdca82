"""Images generated for adverse conditions, each with the clean image it was generated from.

`root` is a workdir of `generate_adverse.py`, whose `manifest.jsonl` says which files belong
together:

    root/manifest.jsonl      one image per line; only those with status `ok` are used
    root/images/CONDITION/ID_VARIANT.png, root/clean/ID.png, root/labels/ID.npy

Alternatively, `root` is a part of the published data set of "Diffusion Models for Monocular Depth
Estimation: Overcoming Challenging Conditions" (Tosi et al., 2024;
huggingface.co/datasets/fabiotosi92/Diffusion4RobustDepth), as unpacked from its archive:

    root/challenging/night/samples/CAM_FRONT/NAME.jpg            nuscenes (night and rain)
    root/challenging/NAME.jpg                                    robotcar
    root/challenging/2015/training/image_2/NAME.jpg              kitti (2012, 2015, val, ...)
    root/challenging/left/train/CITY/NAME.jpg                    cityscapes
    root/challenging/training/images/NAME.jpg                    mapillary
    root/challenging/stereo_train_001/camera_5/NAME.jpg          apolloscapes
    root/OBJECT/{challenging,easy}/NAME.jpg                      ToM, transparent or mirrors

It does not include the clean driving images: `clean_root` is the original data set's folder. A
generated image belongs to the file with the same path below `clean_root`, with any suffix; if there
is none, the path without its first folder is tried, and so on (`samples/CAM_FRONT/NAME.jpg` in
nuScenes, `train/CITY/NAME.png` in Cityscapes' `leftImg8bit`). ToM has its clean images in `easy`.
Labels, which are a teacher's depth maps of the clean images, are found in the same way below
`depth_root`.
"""

import collections
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from diffdepth_jax.data import io, listing
from diffdepth_jax.data.listing import Frame
from diffdepth_jax.data.sources import Sample, Source
from diffdepth_jax.data.sources.folder import read_depth
from diffdepth_jax.errors import ConfigError, DataError, MissingFileError

_LOG = logging.getLogger(__name__)

DEPTH_RANGE = (1e-3, 80.0)  # metres
MANIFEST_FILE = "manifest.jsonl"
_CONDITIONS = {"night": "night-clear", "rain": "day-rain"}  # nuScenes's folders
_IMAGES = (".jpg", ".jpeg", ".png")
_DEPTHS = (".png", ".npy", ".exr")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which images to read, and where their clean images and labels are.

    Attributes:
        root: a workdir; or the folder of one part as above, or a folder below its `challenging`.
        split: `all`, as the data set has no splits.
        clean_root: the folder of the clean images; None for `easy` next to `challenging`.
        depth_root: the folder of the labels; None if there are none, and depth is 0 everywhere.
        depth_scale: stored units per metre in labels; required for PNG.
        conditions: for a workdir: use only these conditions; None for all.
        relative: how to read labels that are relative disparity, as predicted by relative teachers;
            a workdir records whether they are. `inverse` returns them unchanged as
            `relative_disparity` (0 and negative values, as in the sky, are valid), and 1 /
            disparity as depth, 0 where disparity is not positive; for losses that ignore scale and
            shift.
        clean_images: for a workdir: also read the clean images; training that does not use them
            never reads them.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["adverse"] = "adverse"
    root: str = "data/adverse"
    split: str = "all"
    clean_root: str | None = None
    depth_root: str | None = None
    depth_scale: float | None = None
    conditions: tuple[str, ...] | None = None
    relative: Literal["refuse", "inverse"] = "refuse"
    clean_images: bool = True
    check_files: bool = True

    def __post_init__(self) -> None:
        listing.require_split(self.split, ("all",))


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens generated images; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> Source:
    """Opens the images selected by a config.

    Raises:
        MissingFileError: if a folder, a clean image or a label is missing.
        DataError: if there are no images, or a manifest is damaged.
        ConfigError: for options that only apply to the other layout.
    """
    root = listing.require_folder(Path(config.root), "set root to the folder of one data set")
    if not (root / MANIFEST_FILE).exists():
        if config.conditions is not None:
            raise ConfigError(
                f"source.conditions needs a workdir, but {root} has no {MANIFEST_FILE}: leave it "
                "out, or set root to a workdir in which generate_adverse.py has finished"
            )
        return Adverse(config)
    for field in ("clean_root", "depth_root", "depth_scale"):
        if getattr(config, field) is not None:
            raise ConfigError(
                f"source.{field} is set, but {root / MANIFEST_FILE} already says which files "
                "belong together: leave it out"
            )
    return Generated(config)


class Generated(listing.FrameSource):
    """The images of a workdir with status `ok`, and their `clean_image`; depth is the label.

    Attributes:
        num_rejected, num_failed: number of images left out because of their `status`.
    """

    def __init__(self, config: Config):
        root = Path(config.root)
        self._clean = config.clean_images
        path = root / MANIFEST_FILE
        rows = io.read_json_lines(path)
        self.num_rejected = self.num_failed = 0
        try:
            known = dict.fromkeys(row["condition"] for row in rows)
            for condition in config.conditions or ():
                if condition not in known:
                    raise ConfigError(
                        f"source.conditions has {condition!r}; {path} has {', '.join(known)}"
                    )
            rows = [row for row in rows if row["condition"] in (config.conditions or known)]
            statuses = collections.Counter(row["status"] for row in rows)
            rows = [row for row in rows if row["status"] == "ok"]
            frames = [_frame(root, row) for row in rows]
            labels = {row["label_is"] for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise DataError(
                f"{path} is not a manifest of generate_adverse.py ({type(error).__name__}: {error})"
            ) from error
        self.num_rejected, self.num_failed = statuses["rejected"], statuses["failed"]
        if len(rows) < statuses.total():
            _LOG.warning(
                "%d of %d images in %s are left out: %d rejected, %d failed",
                statuses.total() - len(rows),
                statuses.total(),
                path,
                self.num_rejected,
                self.num_failed,
            )
        if len(labels) > 1:
            raise DataError(
                f"{path} has labels of several kinds ({', '.join(sorted(labels))}), but no loss "
                "works with more than one: generate each kind in a separate workdir"
            )
        self._inverse = labels == {"relative_disparity"}
        if self._inverse and config.relative == "refuse":
            raise ConfigError(
                f"the labels in {path} are relative disparity, not metres: set "
                "source.relative='inverse' for a loss that ignores scale and shift, or generate "
                "labels with a metric teacher"
            )
        super().__init__(
            frames,
            self._read_label,
            where=str(path),
            remedy="run generate_adverse.py with this workdir again to generate what is missing",
            check_files=config.check_files,
        )

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        sample = super().__getitem__(index)
        if self._clean:
            clean = sample["clean_image"] = io.read_image(frame.others[0])
            io.check_sample(clean, sample["depth"], frame.others[0], frame.image)
        return _with_relative(sample, listing.known(frame.depth), None) if self._inverse else sample

    def _read_label(self, frame: Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        depth = (
            listing.unmeasured(size)
            if self._inverse
            else read_depth(listing.known(frame.depth), None)
        )
        return depth, listing.known(frame.intrinsics)


def _with_relative(sample: Sample, path: str | Path, scale: float | None) -> Sample:
    """Adds a relative disparity label from a file, and depth computed from it, to a sample."""
    label = io.read_depth_array(path, scale)
    label = np.where(np.isfinite(label), label, np.float32(np.nan))
    known = label > np.finfo(np.float32).tiny  # smaller values have no finite inverse
    depth = np.where(known, 1 / np.where(known, label, 1), 0).astype(np.float32)
    io.check_sample(sample["image"], depth, sample["id"], path)
    return {**sample, "depth": depth, "relative_disparity": label}


def _frame(root: Path, row: Mapping[str, Any]) -> Frame:
    intrinsics = row["intrinsics"]
    return Frame(
        id=f"{row['id']}_{row['condition']}_{int(row['variant'])}",
        image=str(root / row["image"]),
        depth=str(root / row["label"]),
        intrinsics=(
            listing.UNKNOWN
            if intrinsics is None
            else np.array(intrinsics, np.float32).reshape(3, 3)
        ),
        condition=row["condition"],
        others=(str(root / row["clean"]),),
    )


class Adverse:
    """Generated images with depth and `clean_image`, all of the clean image's size.

    A generated image of a different size is resized to that of its clean image, as the authors do.
    Intrinsics are all NaN.
    """

    def __init__(self, config: Config):
        root = listing.require_folder(Path(config.root), "set root to the folder of one data set")
        for field in ("clean_root", "depth_root"):
            if (path := getattr(config, field)) is not None:
                listing.require_folder(Path(path), f"set {field} to where those files are")
        self.config = config
        below = "challenging" in root.parts
        bases = [root] if below else sorted(listing.below(root, "**/challenging"))
        self._images = [
            (base, path.relative_to(base))
            for base in bases
            for path in sorted(listing.below(base, "**/*"))
            if path.suffix.lower() in _IMAGES and not path.name.startswith(".")
        ]
        if not self._images:
            raise DataError(
                f"no images in a folder `challenging` below {root}: unpack the archives there"
            )
        self._root = root
        self.frames = tuple(
            Frame(self._id(base, name), image=str(base / name), condition=_condition(name))
            for base, name in self._images
        )
        listing.require_unique((frame.id for frame in self.frames), str(root))
        if config.check_files:
            self._require_files()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        base, name = self._images[index]
        clean_path, label = self._clean(base, name), self._label(base, name)
        clean = io.read_image(clean_path)
        size = clean.shape[:2]
        image = io.read_image(base / name)
        if image.shape != clean.shape:
            lanczos = Image.Resampling.LANCZOS
            image = np.asarray(Image.fromarray(image).resize(size[::-1], lanczos))
        scale, relative = self.config.depth_scale, self.config.relative == "inverse"
        depth = listing.unmeasured(size)
        if label is not None and not relative:
            depth = read_depth(label, scale)
        io.check_sample(clean, depth, clean_path, label)
        sample = Sample(
            image=image,
            depth=depth,
            intrinsics=listing.UNKNOWN,
            id=self.frames[index].id,
            condition=self.frames[index].condition,
            clean_image=clean,
        )
        return _with_relative(sample, label, scale) if relative and label is not None else sample

    def _require_files(self) -> None:
        """Raises MissingFileError if images have no clean image or label, with their number."""
        for find, what in ((self._clean, "clean image"), (self._label, "label")):
            absent = []
            for image in self._images:
                try:
                    find(*image)
                except MissingFileError as error:
                    absent.append(error)
            if absent:
                raise MissingFileError(
                    f"{len(absent)} of {len(self._images)} images have no {what}; the first error: "
                    f"{absent[0]}. To train without these pairs, set on_error to 'skip'"
                )

    def _id(self, base: Path, name: Path) -> str:
        above = base.parent.relative_to(self._root).parts if base != self._root else ()
        return "_".join((*above, *name.with_suffix("").parts))

    def _clean(self, base: Path, name: Path) -> Path:
        field, root = "clean_root", self.config.clean_root
        folder = base.parent / "easy" if root is None else Path(root)
        return _counterpart(folder, name, _IMAGES, f"{base / name} has no clean image", field)

    def _label(self, base: Path, name: Path) -> Path | None:
        field, root = "depth_root", self.config.depth_root
        if root is None:
            return None
        return _counterpart(Path(root), name, _DEPTHS, f"{base / name} has no label", field)


def _condition(name: Path) -> str:
    return _CONDITIONS.get(name.parts[0], "adverse")


def _counterpart(
    folder: Path, name: Path, suffixes: tuple[str, ...], complaint: str, field: str
) -> Path:
    """The file with the same name in as many of the same folders as possible."""
    for dropped in range(len(name.parts)):
        stem = folder.joinpath(*name.parts[dropped:]).with_suffix("")
        for suffix in suffixes:
            path = stem.with_name(stem.name + suffix)
            if path.is_file():
                return path
    raise MissingFileError(
        f"{complaint}: looked for {folder / name}, with suffix {', '.join(suffixes)}, and without "
        f"its first folders; set {field} to the folder of the originals"
    )
