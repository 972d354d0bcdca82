"""NYU Depth V2: indoor images with Kinect depth, 480x640.

Four layouts are supported, selected by `layout`:

`h5`, the files of sparse-to-dense (Ma and Karaman, 2018; nyudepthv2.tar.gz), which DiffusionDepth
was trained on; each holds `rgb` uint8 [3 h w] and `depth` float32 [h w] in metres:

    root/train/basement_0001a/00001.h5
    root/val/official/00001.h5                       (the 654 official test frames)

`sync`, the files of BTS (Lee et al., 2019), with depth as uint16 PNG in millimetres:

    root/sync/basement_0001a/{rgb_00000.jpg,sync_depth_00000.png}
    root/official_splits/test/bathroom/{rgb_00045.jpg,sync_depth_00045.png}   (the same 654)

`mat`, the labelled part as published by its authors (https://cs.nyu.edu/~silberman): HDF5 with
`images` uint8 [n 3 w h], `depths` and `rawDepths` float32 [n w h] in metres, and the indices of the
795 training and 654 test frames, counted from 1:

    root/nyu_depth_v2_labeled.mat
    root/splits.mat                                  (trainNdxs, testNdxs)

`tfds`, the `h5` files as written by tensorflow-datasets' builder `nyu_depth_v2` in array_record
format (`tfds build nyu_depth_v2 --file_format=array_record`); `root` is its data folder or a
version's folder. Depth is float16 in metres. Reading them does not need TensorFlow:

    root/nyu_depth_v2/0.0.1/{dataset_info.json,features.json,nyu_depth_v2-train.array_record-*}

Depth is 0 where unmeasured; `depths` and the `h5` files were filled in by their authors. Colour
frames have a white border of a few pixels, which BTS painted black.

Intrinsics are the toolbox's at 480x640 and all NaN at other sizes.

Rendered rooms (`tools/render_scenes.py`) use the `sync` layout with additions: a folder
`official_splits/val`; in a scene's folder `intrinsics.txt` (nine numbers, row by row) and
`condition.json`, which sets `condition`, for all its frames; and `mask_cat_00000.png`, a frame's
material map in Booster's classes.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax.data import io, listing
from diffdepth_jax.data.listing import Frame
from diffdepth_jax.data.sources import Sample, Source
from diffdepth_jax.errors import DataError, MissingFileError

DEPTH_RANGE = (1e-3, 10.0)  # metres
CONDITION = "indoor"

# The Kinect's colour camera at 480x640: fx_rgb, fy_rgb, cx_rgb and cy_rgb from the authors' toolbox
# (camera_params.m). Depth is registered to this camera.
INTRINSICS = np.array(
    [
        [518.85790117450188, 0, 325.58244941119034],
        [0, 519.46961112127485, 253.73616633400465],
        [0, 0, 1],
    ],
    np.float32,
)
_SIZE = (480, 640)
_FOLDERS = {
    ("h5", "train"): "train",
    ("h5", "test"): "val/official",
    ("sync", "train"): "sync",
    ("sync", "val"): "official_splits/val",
    ("sync", "test"): "official_splits/test",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames of NYU to read, and from where.

    Attributes:
        root: the folder with the layout above.
        split: `train`, `test`, `val` (rendered rooms only), or the path of a list file with one
            frame per line, `FILE.h5` or `IMAGE DEPTH_PNG [FOCAL]` (BTS's lists), with paths
            relative to `root`; a leading slash is ignored. For BTS's training list, root must be
            its `sync` folder.
        layout: `h5`, `sync`, `mat` or `tfds`; with a list file, its lines decide.
        mat_depth: for the labelled part: `depths` (filled in) or `rawDepths` (as measured, like
            BTS's test frames).
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["nyu"] = "nyu"
    root: str = "data/nyu"
    split: str = "train"
    layout: Literal["h5", "sync", "mat", "tfds"] = "h5"
    mat_depth: Literal["depths", "rawDepths"] = "depths"
    check_files: bool = True

    def __post_init__(self) -> None:
        names = ("train", "val", "test") if self.layout == "sync" else ("train", "test")
        listing.require_split(self.split, names, lists=self.layout in ("h5", "sync"))


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens NYU; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> Source:
    """Opens the frames selected by a config.

    Raises:
        MissingFileError: if the folder, the list or a file is missing.
        DataError: if a list cannot be read, or there are no frames.
    """
    listing.require_folder(Path(config.root), "set root to the folder of NYU")
    if config.layout == "mat":
        return Labelled(config)
    return Tfds(config) if config.layout == "tfds" else Nyu(config)


class Nyu:
    """Frames in separate files: the layouts `h5` and `sync`, and lists."""

    def __init__(self, config: Config):
        self._root = Path(config.root)
        listed = config.split.endswith(".txt")
        files = self._listed(Path(config.split)) if listed else self._scanned(config)
        self.frames = [
            Frame("_".join(Path(paths[0]).with_suffix("").parts[-2:]), *self._absolute(paths))
            for paths in files
        ]
        where = f"split {config.split!r} under {self._root}"
        if not self.frames:
            raise DataError(
                f"no frames for {where}: files of layout {config.layout!r} have other names"
            )
        listing.require_unique((frame.id for frame in self.frames), where)
        if config.check_files:
            paths = [path for frame in self.frames for path in frame.files]
            remedy = "complete the download, or exclude the frames with a list file"
            listing.require_files(paths, where, remedy)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        paths = [Path(path) for path in frame.files]
        if len(paths) == 1:
            image, depth = io.read_h5(paths[0], ("rgb", "depth"))
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != np.uint8:
                raise DataError(
                    f"{paths[0]}: rgb must be uint8 [3 h w], not {image.dtype} {image.shape}"
                )
            image, depth = np.moveaxis(image, 0, -1), depth.astype(np.float32)
        else:
            image, depth = io.read_image(paths[0]), io.read_depth_png(paths[1], scale=1000.0)
        sample = _sample(image, depth, frame.id, paths)
        camera = paths[0].with_name("intrinsics.txt")
        if camera.is_file():
            sample["intrinsics"] = io.read_numbers(camera, (3, 3)).astype(np.float32)
        condition = paths[0].with_name("condition.json")
        if condition.is_file():
            sample["condition"] = io.read_condition(condition)
        mask = paths[0].with_name(f"mask_cat_{paths[0].stem[4:]}.png")
        return listing.with_materials(sample, mask) if mask.is_file() else sample

    def _absolute(self, paths: Sequence[str]) -> tuple[str, str | None]:
        """The image's file, and the depth's if it is a separate one."""
        image, *depth = (str(self._root / path) for path in paths)
        return image, depth[0] if depth else None

    def _scanned(self, config: Config) -> list[tuple[str, ...]]:
        folder = self._root / _FOLDERS[config.layout, config.split]
        if not folder.is_dir():
            raise MissingFileError(
                f"{folder} does not exist: unpack the {config.layout!r} files of NYU there, or set "
                "root and layout (h5 or sync)"
            )
        pattern = "**/*.h5" if config.layout == "h5" else "*/rgb_*.*"
        images = sorted(path.relative_to(self._root) for path in listing.below(folder, pattern))
        if config.layout == "h5":
            return [(str(path),) for path in images]
        return [
            (str(path), str(path.with_name(f"sync_depth_{path.stem[4:]}.png"))) for path in images
        ]

    def _listed(self, path: Path) -> list[tuple[str, ...]]:
        frames = []
        for number, line in listing.read_lines(path, "train, val, test"):
            words = [word.lstrip("/") for word in line.split()]
            count = 1 if words[0].endswith(".h5") else 2
            if len(words) < count:
                raise DataError(
                    f"{path}, line {number}: {line!r} is neither 'FILE.h5' nor "
                    "'IMAGE DEPTH [FOCAL]'"
                )
            frames.append(tuple(words[:count]))
        return frames


class Labelled:
    """The 1449 frames of `nyu_depth_v2_labeled.mat`; ids count from 0, as in BTS."""

    def __init__(self, config: Config):
        self._file = Path(config.root) / "nyu_depth_v2_labeled.mat"
        self._names = ("images", config.mat_depth)
        splits = Path(config.root) / "splits.mat"
        remedy = "download the labelled data set and its train/test split"
        listing.require_files((str(self._file), str(splits)), config.root, remedy)
        (numbers,) = io.read_mat(splits, (f"{config.split}Ndxs",))
        self._indices = numbers.ravel().astype(int) - 1
        if not self._indices.size or self._indices.min() < 0:
            raise DataError(f"{splits}: {config.split}Ndxs must be indices from 1, not {numbers}")

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        frame = int(self._indices[index])
        image, depth = io.read_h5(self._file, self._names, entry=frame)
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != np.uint8:
            raise DataError(
                f"{self._file}: images must be uint8 [n 3 w h], not {image.dtype} {image.shape}"
            )
        # MATLAB stores axes in reverse order.
        return _sample(image.T, depth.T.astype(np.float32), f"{frame:05d}", (self._file,))


class Tfds:
    """The frames of tensorflow-datasets' `nyu_depth_v2`."""

    def __init__(self, config: Config):
        import tensorflow_datasets as tfds  # imported here, as it takes half a second

        root = Path(config.root)
        versions = sorted(root.glob("nyu_depth_v2/*/dataset_info.json"))
        self._folder = versions[-1].parent if versions else root
        if not (self._folder / "dataset_info.json").is_file():
            raise MissingFileError(
                f"{root} holds no nyu_depth_v2/VERSION/dataset_info.json: set root to the data "
                "folder of tensorflow-datasets, after `tfds build nyu_depth_v2 "
                "--file_format=array_record`"
            )
        split = {"train": "train", "test": "validation"}[config.split]
        # For damaged or unsuitable files, errors of four libraries can occur.
        try:
            builder = tfds.builder_from_directory(self._folder)
            self._frames: Sequence[Any] = builder.as_data_source(split)
        except Exception as error:
            raise DataError(
                f"{self._folder} cannot be read ({error}): build it again with "
                "--file_format=array_record"
            ) from error

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        try:
            frame = self._frames[index]
        except Exception as error:
            raise DataError(
                f"{self._folder}, frame {index} cannot be read ({error}): truncated or damaged, "
                "build it again"
            ) from error
        depth = frame["depth"].astype(np.float32)
        return _sample(frame["image"], depth, f"{index:06d}", (self._folder,))


def _sample(image: np.ndarray, depth: np.ndarray, name: str, files: Sequence[Path]) -> Sample:
    """Checks and returns a frame that was read from `files`."""
    io.check_sample(image, depth, files[0], files[-1])
    return Sample(
        image=np.ascontiguousarray(image),
        depth=np.ascontiguousarray(depth),
        intrinsics=INTRINSICS if image.shape[:2] == _SIZE else listing.UNKNOWN,
        id=name,
        condition=CONDITION,
    )
