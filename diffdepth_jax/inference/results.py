"""Writes predictions as 16-bit PNG, NumPy, OpenEXR and PLY point clouds."""

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

# Description of each kind of model output.
WHAT: dict[Output, str] = {
    "metric_depth": "depth in metres",
    "relative_disparity": "relative disparity (larger is nearer; scale and shift are unknown)",
}

SPREAD_ENDINGS = ("_spread.npy", "_spread.png", "_spread.exr")


@dataclasses.dataclass(frozen=True)
class Results:
    """How a model's predictions are written.

    `STEM.npy` has unchanged values: float32, metres or relative disparity. `STEM.exr` has the same
    in one channel, `Z` for metres or `Y` for relative disparity. `STEM.png` has 16 bits: metres x
    256 (at most 255.99), or relative disparity scaled to 0 to 65535 as in MiDaS, where larger is
    nearer. `STEM_colour.png` comes with it; near is bright. `STEM.ply` is a point cloud in metres,
    with the image's colours.

    The spread of samples is written too: `STEM_spread.npy` and `STEM_spread.exr` have their
    standard deviation in the same unit, and `STEM_spread.png` is an image of it, white where
    samples agree (`visualize.colour_spread`).

    Attributes:
        output: the model's output.
        formats: a selection of `FORMATS`.
        camera: camera of the images, for point clouds.
        pictures: whether to write `STEM_colour.png` with `STEM.png`.

    Raises:
        ConfigError: for unknown formats, or point clouds of relative disparity.
        MissingPackageError: if a format needs a package that is not installed.
    """

    output: Output
    formats: tuple[Format, ...] = DEFAULT
    camera: point_cloud.Camera = point_cloud.Camera()
    pictures: bool = True

    def __post_init__(self) -> None:
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ConfigError(
                f"there is no format {unknown[0]!r}; choose from {', '.join(FORMATS)}"
            )
        if "ply" in self.formats and self.output != "metric_depth":
            raise ConfigError(
                "a point cloud (ply) needs depth in metres, but this network predicts "
                f"{WHAT[self.output]}: use a network that predicts metres, such as ZoeDepth or a "
                "metric Depth Anything, or another format"
            )
        if "exr" in self.formats:
            _openexr()

    def endings(self, *, spread: bool) -> tuple[str, ...]:
        """What is appended to the stem for each file that `write` writes."""
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
        """Writes the files of one image, each atomically.

        Args:
            stem: path of the files without their `endings`; folders are created as needed.
            prediction: metres or relative disparity, according to `output`.
            spread: standard deviation of the samples whose mean is `prediction`, if any.
            image: RGB.

        Raises:
            FileError: if a file cannot be written.
            ConfigError: if the camera is for a different image size.
        """
        writers = self._writers(prediction, spread, image)
        with naming_file(stem.parent, "created"):
            stem.parent.mkdir(parents=True, exist_ok=True)
        for ending in self.endings(spread=spread is not None):
            writers[ending](stem.with_name(stem.name + ending))

    def _writers(
        self, prediction: np.ndarray, spread: np.ndarray | None, image: np.ndarray
    ) -> dict[str, Callable[[Path], None]]:
        """The function that writes each file, by ending."""
        metric = self.output == "metric_depth"
        what = WHAT[self.output]

        def painted() -> np.ndarray:
            assert spread is not None
            return visualize.colour_spread(spread, spread_unit(prediction, self.output))

        return {
            ".npy": _array(prediction),
            ".png": _picture(lambda: (depth_steps if metric else disparity_steps)(prediction)),
            # OpenEXR's channel name is Z for distances and Y for grey images.
            ".exr": lambda path: write_exr(path, prediction, "Z" if metric else "Y", what),
            ".ply": lambda path: self._write_points(path, prediction, image),
            "_colour.png": _picture(lambda: coloured(prediction, self.output)),
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


def coloured(prediction: Float[np.ndarray, "h w"], output: Output) -> UInt8[np.ndarray, "h w 3"]:
    """A prediction in colours; near is bright."""
    if output == "metric_depth":
        return visualize.colour_depth(prediction)
    return visualize.colour_disparity(prediction)


def spread_unit(prediction: Float[np.ndarray, "h w"], output: Output) -> Float[np.ndarray, "h w"]:
    """The `unit` of `visualize.colour_spread` for samples whose mean is `prediction`."""
    # Depth is coloured by its logarithm, whose spread is the relative one.
    return prediction if output == "metric_depth" else np.ones_like(prediction)


def _array(values: np.ndarray | None) -> Callable[[Path], None]:
    return lambda path: atomic.write(path, lambda file: np.save(file, np.asarray(values)))


def _picture(paint: Callable[[], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: atomic.write(path, lambda file: Image.fromarray(paint()).save(file, "png"))


def write_exr(path: Path, values: np.ndarray | None, channel: str, comment: str) -> None:
    """Writes an OpenEXR file with one float32 channel.

    Args:
        path: path of the file.
        values: [h w].
        channel: name of the channel.
        comment: description of the values.

    Raises:
        FileError: if it cannot be written.
        MissingPackageError: if the optional package OpenEXR is not installed.
    """
    openexr = _openexr()
    header = {
        "compression": openexr.ZIP_COMPRESSION,
        "type": openexr.scanlineimage,
        "comments": comment,
    }
    channels = {channel: np.ascontiguousarray(values, np.float32)}
    # by name, as OpenEXR can only write to open files since 3.5
    with atomic.replacing(path) as temporary:
        try:
            openexr.File(header, channels).write(str(temporary))
        except RuntimeError as error:  # for example a full disk
            raise OSError(str(error)) from error


def depth_steps(depth: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Metres in KITTI's format; 0 where depth is unknown."""
    # 0 means "no depth" in this format, so the smallest depth is 1/256 m.
    known = np.clip(np.rint(depth * 256), 1, 65535)
    return np.where(np.isnan(depth), 0, known).astype(np.uint16)


def disparity_steps(disparity: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Relative disparity as stored by MiDaS's `write_depth`; all 0 if it is constant."""
    finite = np.isfinite(disparity)
    known = disparity[finite]
    low, high = (known.min(), known.max()) if known.size else (np.float32(0), np.float32(0))
    if not high - low > np.finfo(np.float32).eps:
        return np.zeros(disparity.shape, np.uint16)
    # In float32 and truncated instead of rounded, as in MiDaS.
    return (65535 * (np.where(finite, disparity, low) - low) / (high - low)).astype(np.uint16)


def _openexr() -> Any:
    try:
        import OpenEXR  # an extra
    except ImportError as error:
        raise MissingPackageError(
            "writing .exr needs the package OpenEXR: pip install 'diffdepth_jax[exr]'"
        ) from error
    return OpenEXR
