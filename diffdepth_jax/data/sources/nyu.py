"""NYU Depth V2: indoor images with Kinect depth, 480x640.

Two layouts are read, chosen by `layout`:

`h5`, the files of sparse-to-dense (Ma and Karaman, 2018; nyudepthv2.tar.gz), that DiffusionDepth
was trained on; each holds `rgb` uint8 [3 h w] and `depth` float32 [h w] in metres:

    root/train/basement_0001a/00001.h5
    root/val/official/00001.h5                       (the 654 official test frames)

`sync`, the files of BTS (Lee et al., 2019), depth as uint16 PNG in millimetres:

    root/sync/basement_0001a/{rgb_00000.jpg,sync_depth_00000.png}
    root/official_splits/test/bathroom/{rgb_00045.jpg,sync_depth_00045.png}   (the same 654)

Depth is 0 where nothing was measured. Colour frames have a white border of a few pixels.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from diffdepth_jax.data import io
from diffdepth_jax.data.sources import Sample, Source

DEPTH_RANGE = (1e-3, 10.0)  # metres
CONDITION = "indoor"

# Colour camera of the data set's Kinect, at 480x640: fx_rgb, fy_rgb, cx_rgb and cy_rgb of the
# authors' toolbox (camera_params.m). Depth is registered to this camera.
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
    ("sync", "test"): "official_splits/test",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which frames of NYU, and where they are.

    Attributes:
      root: the folder of the layout above.
      split: `train`, `test`, or the path of a list file: one frame a line, `FILE.h5` or
        `IMAGE DEPTH_PNG [FOCAL]` (BTS's lists), with paths relative to `root`; a leading slash is
        ignored. BTS's training list wants root to be its `sync` folder.
      layout: `h5` or `sync`; with a list file the lines decide.
    """

    name: Literal["nyu"] = "nyu"
    root: str = "data/nyu"
    split: str = "train"
    layout: Literal["h5", "sync"] = "h5"

    def __post_init__(self) -> None:
        if self.split not in ("train", "test") and not self.split.endswith(".txt"):
            raise ValueError(
                f"split is {self.split!r}; it must be train, test or the path of a list file "
                "ending in .txt"
            )


def source(split: str, root: str | Path, **options: object) -> Source:
    """Opens NYU; `options` are further fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> Source:
    """Opens the frames that a config names.

    Raises:
      FileNotFoundError: if the folder, the list or a file is missing.
      ValueError: if a list cannot be read, or there are no frames.
    """
    return Nyu(config)


class Nyu:
    """Frames of NYU Depth V2; see `Config` and the layouts above. `intrinsics` are the toolbox's at
    480x640 and all NaN for frames of another size, whose crop nobody knows."""

    def __init__(self, config: Config):
        self._root = Path(config.root)
        if not self._root.is_dir():
            raise FileNotFoundError(f"{self._root} does not exist: set root to the folder of NYU")
        if config.split in ("train", "test"):
            self._frames = self._scanned(config)
        else:
            self._frames = self._listed(Path(config.split))
        if not self._frames:
            raise ValueError(f"no frames for split {config.split!r} under {self._root}")
        paths = (self._root / path for frame in self._frames for path in frame)
        if missing := io.missing(paths):
            raise FileNotFoundError(
                f"{len(missing)} files of split {config.split!r} are missing, the first is "
                f"{missing[0]}: complete the download or leave the frames out by a list file"
            )

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self._frames[index]
        paths = [self._root / path for path in frame]
        if len(frame) == 1:
            image, depth = io.read_h5(paths[0], ("rgb", "depth"))
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != np.uint8:
                raise ValueError(
                    f"{paths[0]}: rgb must be uint8 [3 h w], not {image.dtype} {image.shape}"
                )
            image, depth = np.ascontiguousarray(np.moveaxis(image, 0, -1)), depth.astype(np.float32)
        else:
            image, depth = io.read_image(paths[0]), io.read_depth_png(paths[1], scale=1000.0)
        io.check_sample(image, depth, paths[0], paths[-1])
        known = image.shape[:2] == _SIZE
        return Sample(
            image=image,
            depth=depth,
            intrinsics=INTRINSICS if known else np.full((3, 3), np.nan, np.float32),
            id="_".join(Path(frame[0]).with_suffix("").parts[-2:]),
            condition=CONDITION,
        )

    def _scanned(self, config: Config) -> list[tuple[str, ...]]:
        folder = self._root / _FOLDERS[config.layout, config.split]
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} does not exist: unpack the {config.layout!r} files of NYU there, or set "
                "root and layout (h5 or sync)"
            )
        pattern = "**/*.h5" if config.layout == "h5" else "*/rgb_*.*"
        images = sorted(path.relative_to(self._root) for path in folder.glob(pattern))
        if config.layout == "h5":
            return [(str(path),) for path in images]
        return [
            (str(path), str(path.with_name(f"sync_depth_{path.stem[4:]}.png"))) for path in images
        ]

    def _listed(self, path: Path) -> list[tuple[str, ...]]:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: split must be train, test or a list file"
            )
        frames = []
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            words = [word.lstrip("/") for word in line.split()]
            if not words:
                continue
            count = 1 if words[0].endswith(".h5") else 2
            if len(words) < count:
                raise ValueError(
                    f"{path}, line {number}: {line!r} is neither 'FILE.h5' nor "
                    "'IMAGE DEPTH [FOCAL]'"
                )
            frames.append(tuple(words[:count]))
        return frames
