"""Submissions to the KITTI depth prediction benchmark: one checked zip of 16-bit PNGs.

From the benchmark's devkit: files 0000000000.png to 0000000499.png at the top level of the archive,
uint16 = metres * 256, 0 for no estimate, with the sizes of the images in
`test_depth_prediction_anonymous`.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from diffdepth_jax import atomic
from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation.protocols import frames

NAMES = tuple(f"{index:010d}" for index in range(500))
_SCALE = 256
_LARGEST = 2**16 - 1
_SHOWN = 5  # names listed in an error


def write(
    path: str | os.PathLike,
    samples: Iterable[Mapping[str, Any]],
    depth_of: Callable[[Mapping[str, Any]], np.ndarray],
) -> None:
    """Writes the archive atomically.

    Args:
        path: the .zip to write.
        samples: the 500 images with their official names as `id`, as in the source `kitti` with
            `split="test_anonymous"`.
        depth_of: returns a sample's depth, float [h, w] in metres, at its image's size. Depth is
            clipped to 1/256 to 255.996 m, as 0 would mean no estimate.

    Raises:
        DataError: if the samples are not the benchmark's, or a depth map has a different size or
            contains NaN (names the image).
    """

    def write_zip(file: BinaryIO) -> None:
        names = []
        with zipfile.ZipFile(file, "w") as archive:  # PNGs are already compressed
            for sample in samples:
                names.append(sample["id"])
                content = encode(depth_of(sample), sample["id"], sample["image"].shape[:2])
                archive.writestr(zipfile.ZipInfo(f"{names[-1]}.png"), content)
        check_names(names, "the samples")

    atomic.write(path, write_zip)


def encode(depth: np.ndarray, name: str, size: tuple[int, int]) -> bytes:
    """A depth map as a PNG for the benchmark; errors as in `write`."""
    if depth.shape != size:
        raise DataError(
            f"image {name!r}: its depth is {frames.show(depth.shape)}, but the image is "
            f"{frames.show(size)}; they must match"
        )
    if np.isnan(depth).any():
        raise DataError(f"image {name!r}: its depth is NaN at {np.isnan(depth).sum()} pixels")
    steps = np.clip(np.rint(depth.astype(np.float64) * _SCALE), 1, _LARGEST).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(steps).save(file, "png")
    return file.getvalue()


def check(path: str | os.PathLike) -> None:
    """Rejects an archive that the benchmark would reject.

    Raises:
        DataError: for missing or extra files, or files that are not 16-bit maps without gaps; names
            them.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a zip archive ({error})") from error
    with archive:
        check_names((name.removesuffix(".png") for name in archive.namelist()), path)
        for name in NAMES:
            with archive.open(f"{name}.png") as file, Image.open(file) as image:
                if image.mode != "I;16":
                    raise DataError(f"{path}: {name}.png has mode {image.mode}, not 16-bit grey")
                empty = int((np.asarray(image) == 0).sum())
            if empty:
                raise DataError(f"{path}: {name}.png has no estimate at {empty} pixels")


def check_names(names: Iterable[str], where: object) -> None:
    """Raises DataError unless the names are the benchmark's 500, each once."""
    found = list(names)
    missing, further = sorted(set(NAMES) - set(found)), sorted(set(found) - set(NAMES))
    if missing or further or len(found) != len(NAMES):
        raise DataError(
            f"{where}: {len(found)} images; the benchmark has {len(NAMES)}, {NAMES[0]} to "
            f"{NAMES[-1]}"
            + (f"; {len(missing)} are missing: {_list(missing)}" if missing else "")
            + (f"; {len(further)} are unknown: {_list(further)}" if further else "")
        )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
