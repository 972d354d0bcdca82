"""Depth of image files, written to files."""

import collections
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffdepth_jax import atomic, visualize
from diffdepth_jax.data import io, listing
from diffdepth_jax.errors import (
    ConfigError,
    FileError,
    MissingFileError,
    UserError,
    naming_file,
    printable,
)
from diffdepth_jax.inference.model import DepthModel
from diffdepth_jax.inference.preprocessing import check_size, read_image
from diffdepth_jax.models.networks.network import Output
from diffdepth_jax.typing import InputSpec

# By a model's output: the meaning of its numbers.
WHAT: dict[Output, str] = {
    "metric_depth": "depth in metres",
    "relative_disparity": "relative disparity (larger is nearer; scale and shift are unknown)",
}

_ENDINGS = (".png", ".npy", "_colour.png")
_SPREAD_ENDINGS = ("_spread.npy", "_spread.png")
_THREADS = 2  # for reading and writing while the model computes
_AHEAD = 4  # images besides a batch that are read ahead or wait to be written


def find_images(pattern: str | os.PathLike) -> list[Path]:
    """The image files that a path, a directory or a glob pattern stands for, sorted.

    Raises:
        FileError: if there are none (`MissingFileError`), or the folder cannot be listed.
    """
    path = Path(pattern).expanduser()
    with naming_file(path, "read"):
        if path.is_file():
            return [path]
        if path.is_dir():
            paths = [entry for entry in path.iterdir() if entry.suffix.lower() in io.IMAGE_SUFFIXES]
            wanted = ", ".join(io.IMAGE_SUFFIXES)
        else:
            paths = [entry for entry in listing.matches(path)[1] if not entry.is_dir()]
            wanted = "a file"
    if not paths:
        raise MissingFileError(f"no image found: {pattern} holds or matches none ({wanted})")
    return sorted(paths)


def predict_files(
    model: DepthModel,
    paths: Sequence[Path],
    output: str | os.PathLike,
    *,
    batch_size: int = 1,
    skip_existing: bool = False,
    num_samples: int | None = None,
    **options: Any,
) -> list[str]:
    """Predicts depth for image files and writes it as 16-bit PNG, `.npy` and a colour picture.

    `STEM.npy` has the numbers as they are: float32, metres or relative disparity, as the model's
    `output` says. `STEM.png` has 16 bits: metres x 256 (at most 255.99), or relative disparity with
    its smallest and largest value brought to 0 and 65535, as MiDaS writes it, so that larger is
    nearer. In `STEM_colour.png` near is bright. With `num_samples` these three are of the mean,
    `STEM_spread.npy` is the samples' standard deviation, float32 in the same unit, and
    `STEM_spread.png` a picture of it, white where samples agree (`visualize.colour_spread`). Files
    are read and written by separate threads while the model computes.

    Args:
        model: what `load` returned.
        paths: image files, as `find_images` returns them.
        output: directory, created if needed; keeps the folders of the images below the one that is
          common to all.
        batch_size: at most this many images of equal size are predicted in one call.
        skip_existing: skip images whose results all exist.
        num_samples, **options: as for `DepthModel.predict`.

    Returns:
        One line for each image that could not be read, or whose results could not be named; the
        others are processed all the same.

    Raises:
        ConfigError: if a result would replace an image or another result, or for samples that the
          model cannot draw; before any work.
        FileError: if a result cannot be written; names it and the cause.
        KeyboardInterrupt: with a message that says how to continue.
    """
    output = Path(output).expanduser()
    endings = _ENDINGS
    if num_samples is not None:
        model.check_num_samples(num_samples)
        endings += _SPREAD_ENDINGS
        options["num_samples"] = num_samples
    targets = _result_paths(paths, output, endings)
    atomic.remove_leftovers(output, recursive=True)
    todo = [
        path
        for path in paths
        if not (skip_existing and all(target.exists() for target in targets[path]))
    ]
    failures: list[str] = []
    num_done = len(paths) - len(todo)
    bar = tqdm(total=len(paths), initial=num_done, unit="image")
    ahead = batch_size + _AHEAD

    def skip(path: Path, error: Exception) -> None:
        failures.append(printable(f"skipped {path}: {error}"))
        bar.write(failures[-1], file=sys.stderr)
        bar.update()

    def finish(path: Path, written: Future) -> None:
        nonlocal num_done
        try:
            written.result()
        except FileError as error:
            if not _is_bad_name(error):
                raise
            skip(path, error)
        else:
            num_done += 1
            bar.update()

    pool = ThreadPoolExecutor(_THREADS)
    writing: collections.deque[tuple[Path, Future]] = collections.deque()
    try:
        read = functools.partial(_read, spec=model.input_spec)
        for batch in _batches(pool, todo, read, batch_size, ahead, skip):
            found = model.predict(list(batch.values()), batch_size=batch_size, **options)
            results = zip(*found, strict=True) if num_samples else ((each, None) for each in found)
            for path, (depth, spread) in zip(batch, results, strict=True):
                task = pool.submit(_write, depth, spread, model.output, targets[path])
                writing.append((path, task))
            while len(writing) > ahead:
                finish(*writing.popleft())
        while writing:
            finish(*writing.popleft())
    except KeyboardInterrupt:
        while writing:  # what has already been computed
            finish(*writing.popleft())
        raise KeyboardInterrupt(
            f"{num_done} of {len(paths)} images are done; the same command with --skip_existing "
            "does the rest"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    return failures


def _read(path: Path, spec: InputSpec) -> np.ndarray:
    image = read_image(path)
    height, width = image.shape[:2]
    check_size(height, width, spec)
    return image


def _batches(
    pool: ThreadPoolExecutor,
    paths: Sequence[Path],
    read: Callable[[Path], np.ndarray],
    batch_size: int,
    ahead: int,
    skip: Any,
) -> Iterator[dict[Path, np.ndarray]]:
    """Groups of images of equal size, read ahead; a group is yielded early when too many wait."""
    left = iter(paths)
    reading: collections.deque[tuple[Path, Future]] = collections.deque()
    waiting: dict[tuple[int, ...], dict[Path, np.ndarray]] = {}
    while True:
        while len(reading) < ahead and (path := next(left, None)) is not None:
            reading.append((path, pool.submit(read, path)))
        if not reading:
            break
        path, future = reading.popleft()
        try:
            image = future.result()
        except UserError as error:  # a bad file; our own bugs are not caught
            skip(path, error)
            continue
        waiting.setdefault(image.shape, {})[path] = image
        if len(waiting[image.shape]) == batch_size:
            yield waiting.pop(image.shape)
        elif sum(map(len, waiting.values())) >= 2 * ahead:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _write(
    prediction: np.ndarray, spread: np.ndarray | None, output: Output, targets: Sequence[Path]
) -> None:
    png, npy, picture, *of_spread = targets
    if output == "metric_depth":
        steps, colours = _depth_steps(prediction), visualize.colour_depth(prediction)
    else:
        steps, colours = _disparity_steps(prediction), visualize.colour_disparity(prediction)
    with naming_file(png.parent, "created"):
        png.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(png, lambda file: Image.fromarray(steps).save(file, "png"))
    atomic.write(npy, lambda file: np.save(file, prediction))
    atomic.write(picture, lambda file: Image.fromarray(colours).save(file, "png"))
    if spread is not None:
        npy, picture = of_spread
        # Depth is coloured by its logarithm, whose spread is the relative one.
        unit = prediction if output == "metric_depth" else np.ones_like(prediction)
        painted = visualize.colour_spread(spread, unit)
        atomic.write(npy, lambda file: np.save(file, spread))
        atomic.write(picture, lambda file: Image.fromarray(painted).save(file, "png"))


def _depth_steps(depth: np.ndarray) -> np.ndarray:
    """Metres as KITTI stores them, uint16; 0 where depth is unknown."""
    # 0 means "no depth" in this format, so the nearest depth it can hold is 1/256 m.
    known = np.clip(np.rint(depth * 256), 1, 65535)
    return np.where(np.isnan(depth), 0, known).astype(np.uint16)


def _disparity_steps(disparity: np.ndarray) -> np.ndarray:
    """Relative disparity as MiDaS's `write_depth` stores it, uint16; all 0 where it is constant."""
    finite = np.isfinite(disparity)
    known = disparity[finite]
    low, high = (known.min(), known.max()) if known.size else (np.float32(0), np.float32(0))
    if not high - low > np.finfo(np.float32).eps:
        return np.zeros(disparity.shape, np.uint16)
    # In float32 and truncated, not rounded, as there.
    return (65535 * (np.where(finite, disparity, low) - low) / (high - low)).astype(np.uint16)


def _is_bad_name(error: Exception) -> bool:
    """Whether only this one file cannot be written, because of its name."""
    return getattr(error.__cause__, "errno", None) in (errno.ENAMETOOLONG, errno.EILSEQ)


def _result_paths(
    paths: Sequence[Path], output: Path, endings: Sequence[str]
) -> dict[Path, list[Path]]:
    """Where each image's results go."""
    # Without "..", which could lead out of the output directory.
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    common = Path(os.path.commonpath([path.parent for path in absolute.values()]))
    taken = {os.path.realpath(path): path for path in paths}
    targets: dict[Path, list[Path]] = {}
    for path in paths:
        stem = output / absolute[path].relative_to(common).with_suffix("")
        targets[path] = [stem.with_name(stem.name + ending) for ending in endings]
        for target in targets[path]:
            place = os.path.realpath(target)
            other = taken.setdefault(place, path)
            if other is not path or place == os.path.realpath(path):
                raise ConfigError(
                    f"the result {target} of {path} would replace what belongs to {other}: choose "
                    "another output directory, or predict them separately"
                )
    return targets
