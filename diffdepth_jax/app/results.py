"""Files of a prediction, which the page shows or offers for download. They are kept for an hour."""

import contextlib
import importlib.util
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffdepth_jax import visualize
from diffdepth_jax.app import patches, predictions
from diffdepth_jax.app.predictions import Prediction
from diffdepth_jax.errors import naming_file
from diffdepth_jax.inference.point_cloud import Camera
from diffdepth_jax.inference.results import Format, Results

LIFETIME = 3600.0  # seconds that files stay
MOST_BYTES = 1e9  # of all files of all visitors
FARTHEST_TO_NEAREST = 10.0  # assumed in the scene of a network that predicts relative disparity


@dataclass(frozen=True)
class Pictures:
    """What the page shows of a prediction, as files.

    Attributes:
        image, depth: of equal size, to compare one over the other.
        steps: depth after each denoising step.
        spread: spread of the samples; None for a single sample.
    """

    image: Path
    depth: Path
    steps: tuple[Path, ...]
    spread: Path | None


def write_pictures(prediction: Prediction, folder: Path) -> Pictures:
    """Writes the pictures of a prediction.

    Args:
        folder: created if it does not exist.

    Raises:
        FileError: if they cannot be written.
    """

    def save(array: np.ndarray, name: str) -> Path:
        return predictions.save_picture(array, folder / f"{name}.webp")

    with naming_file(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        spread = None
        if prediction.spread is not None:
            spread = save(predictions.spread_picture(prediction), "spread")
        steps = enumerate(predictions.step_pictures(prediction), start=1)
        return Pictures(
            image=save(prediction.upload.image, "image"),
            depth=save(predictions.picture(prediction), "depth"),
            steps=tuple(save(picture, f"step_{number}") for number, picture in steps),
            spread=spread,
        )


def write_downloads(prediction: Prediction, camera: Camera, folder: Path) -> list[Path]:
    """Writes depth in every format that this network and the installed packages allow.

    Args:
        folder: created if it does not exist.

    Raises:
        FileError: if they cannot be written.
    """
    formats: list[Format] = ["png", "npy"]
    if importlib.util.find_spec("OpenEXR") is not None:
        formats.append("exr")
    if prediction.is_metric:
        formats.append("ply")
    results = Results(prediction.output, tuple(formats), camera)
    stem = folder / prediction.upload.name
    results.write(stem, prediction.depth, prediction.spread, prediction.upload.image)
    endings = results.endings(spread=prediction.spread is not None)
    return [stem.with_name(stem.name + ending) for ending in endings]


def write_scene(prediction: Prediction, camera: Camera, folder: Path) -> tuple[Path, float]:
    """Writes the scene that can be turned, under a new name.

    Args:
        folder: created if it does not exist.

    Returns:
        The file, and how far the middle of the scene is from the camera.

    Raises:
        FileError: if it cannot be written.
    """
    depth = scene_depth(prediction)
    scene = patches.build(prediction.upload.image, depth, camera.matrix(*depth.shape))
    with naming_file(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{uuid.uuid4().hex}.glb"
        path.write_bytes(patches.glb(scene))
    return path, scene.distance


def scene_depth(prediction: Prediction) -> Float[np.ndarray, "h w"]:
    """Depth in metres, or, of relative disparity, one of the depths that it allows.

    Relative disparity is inverse depth up to a scale and a shift. The nearest point (98th
    percentile) is put at the distance 1, the farthest (2nd) at `FARTHEST_TO_NEAREST`.
    """
    if prediction.is_metric:
        return prediction.depth
    low, high = visualize.disparity_range(prediction.depth)
    nearness = np.clip((prediction.depth - low) / max(high - low, 1e-12), 0, 1)
    far = 1 / FARTHEST_TO_NEAREST
    return np.asarray(1 / (far + (1 - far) * nearness), np.float32)


def remove_old(folder: Path, now: float) -> None:
    """Deletes files below a folder that are older than `LIFETIME`, and the oldest ones beyond
    `MOST_BYTES`. The newest file always stays. Empty folders of that age are deleted, too.

    Args:
        now: seconds since the epoch.
    """
    found, folders = [], []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                folders.append((path, status.st_mtime))
            else:
                found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for written, size, path in sorted(found)[:-1]:
        if total <= MOST_BYTES and now - written <= LIFETIME:
            break
        path.unlink(missing_ok=True)
        total -= size
    for path, written in sorted(folders, reverse=True):  # a folder after those inside it
        if now - written > LIFETIME:
            with contextlib.suppress(OSError):  # it is not empty, or removed meanwhile
                path.rmdir()
