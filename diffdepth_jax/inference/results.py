"""The files that a prediction is written to: 16-bit PNG, NumPy, OpenEXR, point clouds in PLY."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from PIL import Image

from diffdepth_jax import __version__, atomic, visualize
from diffdepth_jax.errors import ConfigError, MissingPackageError, naming_file
from diffdepth_jax.inference import point_cloud
from diffdepth_jax.models.networks.network import Output

Format = Literal["png", "npy", "exr", "ply"]
FORMATS: tuple[Format, ...] = ("png", "npy", "exr", "ply")
DEFAULT: tuple[Format, ...] = ("png", "npy")

# By a model's output: the meaning of its numbers.
WHAT: dict[Output, str] = {
    "metric_depth": "depth in metres",
    "relative_disparity": "relative disparity (larger is nearer; scale and shift are unknown)",
}

SPREAD_ENDINGS = ("_spread.npy", "_spread.png", "_spread.exr")


@dataclasses.dataclass(frozen=True)
class Results:
    """How the predictions of a model are written.

    `STEM.npy` has the numbers as they are: float32, metres or relative disparity. `STEM.exr` has
    the same in one channel, `Z` of metres or `Y` of relative disparity. `STEM.png` has 16 bits:
    metres x 256 (at most 255.99), or relative disparity with its smallest and largest value brought
    to 0 and 65535, as MiDaS writes it, so that larger is nearer. In `STEM_colour.png`, beside it,
    near is bright. `STEM.ply` is a point cloud in the colours of the image, in metres.

    The spread of samples goes beside them: `STEM_spread.npy` and `STEM_spread.exr` are their
    standard deviation in the same unit, `STEM_spread.png` is a picture of it, white where samples
    agree (`visualize.colour_spread`).

    Attributes:
        output: of the model.
        formats: which of `FORMATS`.
        camera: of the images, for point clouds.
        pictures: write `STEM_colour.png` with `STEM.png`.

    Raises:
        ConfigError: for formats that do not exist, or point clouds of relative disparity.
        MissingPackageError: if a format needs a package that is not installed.
    """

    output: Output
    formats: tuple[Format, ...] = DEFAULT
    camera: point_cloud.Camera = point_cloud.Camera()
    pictures: bool = True

    def __post_init__(self) -> None:
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ConfigError(f"there is no format {unknown[0]!r}; known are {', '.join(FORMATS)}")
        if "ply" in self.formats and self.output != "metric_depth":
            raise ConfigError(
                f"a point cloud (ply) needs depth in metres, but this network predicts "
                f"{WHAT[self.output]}: choose a network that predicts metres, such as ZoeDepth or "
                "Depth Anything's metric ones, or another format"
            )
        if "exr" in self.formats:
            _openexr()

    def endings(self, *, spread: bool) -> tuple[str, ...]:
        """What is added to the stem of a file's name, for each file that `write` writes."""
        names = [f".{name}" for name in FORMATS if name in self.formats]
        if ".png" in names and self.pictures:
            names.append("_colour.png")
        if spread:
            names += [name for name in SPREAD_ENDINGS if name.partition(".")[2] in self.formats]
        return tuple(names)

    def write(
        self,
        stem: Path,
        prediction: Float[np.ndarray, "h w"],
        spread: Float[np.ndarray, "h w"] | None,
        image: UInt8[np.ndarray, "h w 3"],
    ) -> None:
        """Writes the files of one image, each of them whole or not at all.

        Args:
            stem: the files' path without what `endings` lists; folders are made as needed.
            prediction: metres or relative disparity, as `output` says.
            spread: standard deviation of the samples that `prediction` is the mean of, if any.
            image: RGB.

        Raises:
            FileError: if a file cannot be written.
            ConfigError: if the camera is that of another size.
        """
        writers = self._writers(prediction, spread, image)
        with naming_file(stem.parent, "created"):
            stem.parent.mkdir(parents=True, exist_ok=True)
        for ending in self.endings(spread=spread is not None):
            writers[ending](stem.with_name(stem.name + ending))

    def _writers(
        self, prediction: np.ndarray, spread: np.ndarray | None, image: np.ndarray
    ) -> dict[str, Callable[[Path], None]]:
        """What writes each file, by its ending."""
        metric = self.output == "metric_depth"
        what = WHAT[self.output]

        def painted() -> np.ndarray:
            assert spread is not None
            # Depth is coloured by its logarithm, whose spread is the relative one.
            unit = prediction if metric else np.ones_like(prediction)
            return visualize.colour_spread(spread, unit)

        colour = visualize.colour_depth if metric else visualize.colour_disparity
        return {
            ".npy": _array(prediction),
            ".png": _picture(lambda: (depth_steps if metric else disparity_steps)(prediction)),
            # OpenEXR's name for distances is Z, and Y for grey images.
            ".exr": lambda path: write_exr(path, prediction, "Z" if metric else "Y", what),
            ".ply": lambda path: self._write_points(path, prediction, image),
            "_colour.png": _picture(lambda: colour(prediction)),
            "_spread.npy": _array(spread),
            "_spread.png": _picture(painted),
            "_spread.exr": lambda path: write_exr(
                path, spread, "Y", f"standard deviation of {what}"
            ),
        }

    def _write_points(self, path: Path, depth: np.ndarray, image: np.ndarray) -> None:
        intrinsics = self.camera.matrix(*depth.shape)
        points, valid = point_cloud.points(depth, intrinsics)
        fx, fy, cx, cy = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
        comments = [
            f"diffdepth_jax {__version__}; metres; x to the right, y down, z forward",
            self.camera.described(),
            f"fx {fx:.6g} fy {fy:.6g} cx {cx:.6g} cy {cy:.6g} pixels, "
            f"height {depth.shape[0]} width {depth.shape[1]}",
        ]
        atomic.write(path, lambda file: point_cloud.write_ply(file, points, image[valid], comments))


def _array(values: np.ndarray | None) -> Callable[[Path], None]:
    return lambda path: atomic.write(path, lambda file: np.save(file, np.asarray(values)))


def _picture(paint: Callable[[], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: atomic.write(path, lambda file: Image.fromarray(paint()).save(file, "png"))


def write_exr(path: Path, values: np.ndarray | None, channel: str, comment: str) -> None:
    """Writes an OpenEXR file of one float32 channel.

    Args:
        path: of the file.
        values: [h w].
        channel: its name.
        comment: what the numbers are.

    Raises:
        FileError: if it cannot be written.
        MissingPackageError: if the package OpenEXR, an optional dependency, is not installed.
    """
    openexr = _openexr()
    header = {
        "compression": openexr.ZIP_COMPRESSION,
        "type": openexr.scanlineimage,
        "comments": comment,
    }
    channels = {channel: np.ascontiguousarray(values, np.float32)}
    # By name: OpenEXR writes to open files only since 3.5.
    with atomic.replacing(path) as temporary:
        try:
            openexr.File(header, channels).write(str(temporary))
        except RuntimeError as error:  # a full disk, for one
            raise OSError(str(error)) from error


def depth_steps(depth: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Metres as KITTI stores them; 0 where depth is unknown."""
    # 0 means "no depth" in this format, so the nearest depth it can hold is 1/256 m.
    known = np.clip(np.rint(depth * 256), 1, 65535)
    return np.where(np.isnan(depth), 0, known).astype(np.uint16)


def disparity_steps(disparity: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Relative disparity as MiDaS's `write_depth` stores it; all 0 where it is constant."""
    finite = np.isfinite(disparity)
    known = disparity[finite]
    low, high = (known.min(), known.max()) if known.size else (np.float32(0), np.float32(0))
    if not high - low > np.finfo(np.float32).eps:
        return np.zeros(disparity.shape, np.uint16)
    # In float32 and truncated, not rounded, as there.
    return (65535 * (np.where(finite, disparity, low) - low) / (high - low)).astype(np.uint16)


def _openexr() -> Any:
    try:
        import OpenEXR  # an extra
    except ImportError as error:
        raise MissingPackageError(
            "writing .exr needs the package OpenEXR: pip install 'diffdepth_jax[exr]'"
        ) from error
    return OpenEXR
