"""Predicts depth for image files and writes it to files."""

import collections
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from diffdepth_jax import atomic
from diffdepth_jax.data import io, listing
from diffdepth_jax.errors import (
    ConfigError,
    FileError,
    MissingFileError,
    UserError,
    naming_file,
    printable,
)
from diffdepth_jax.inference import ffmpeg, progress
from diffdepth_jax.inference.model import DepthModel
from diffdepth_jax.inference.preprocessing import check_size, read_image
from diffdepth_jax.inference.results import SPREAD_ENDINGS, Results
from diffdepth_jax.typing import InputSpec

_THREADS = 2  # for reading and writing while the model computes
_AHEAD = 4  # images besides a batch that are read ahead or wait to be written


def find_images(pattern: str | os.PathLike) -> list[Path]:
    """The image files for a path, a directory or a glob pattern, sorted.

    Raises:
        FileError: if there are none (`MissingFileError`), or the folder cannot be listed.
    """
    path = Path(pattern).expanduser()
    with naming_file(path, "read"):
        if path.is_file():
            return [path]
        if path.is_dir():
            entries = list(path.iterdir())
            paths = [entry for entry in entries if entry.suffix.lower() in io.IMAGE_SUFFIXES]
            wanted = ", ".join(io.IMAGE_SUFFIXES)
            if videos := [entry for entry in entries if entry.suffix.lower() in ffmpeg.SUFFIXES]:
                wanted += f"; for its videos, use a pattern such as {path}/*{videos[0].suffix}"
        else:
            paths = [entry for entry in listing.matches(path)[1] if not entry.is_dir()]
            wanted = "a file"
    if not paths:
        raise MissingFileError(f"no image found: {pattern} contains or matches none ({wanted})")
    return sorted(paths)


def predict_files(
    model: DepthModel,
    paths: Sequence[Path],
    output: str | os.PathLike,
    results: Results | None = None,
    *,
    batch_size: int = 1,
    skip_existing: bool = False,
    num_samples: int | None = None,
    speed: progress.Speed | None = None,
    **options: Any,
) -> list[str]:
    """Predicts depth for image files and writes it to files, see `Results`.

    Files are read and written by separate threads while the model computes.

    Args:
        model: as returned by `load`.
        paths: image files, as returned by `find_images`.
        output: directory, created if needed; folders below the images' common one are kept.
        results: how predictions are written; None for 16-bit PNG, `.npy` and a colour image.
        batch_size: maximum number of images of equal size per call.
        skip_existing: skip images whose results all exist.
        num_samples, **options: as in `DepthModel.predict`. With samples, results are of their mean,
          and their spread is written too; otherwise, that of an earlier run is removed.
        speed: counts images.

    Returns:
        One line for each image that could not be read, or whose results could not be named; the
        others are still processed.

    Raises:
        ConfigError: before any work, if a result would replace an image or another result, or the
          model cannot draw samples.
        FileError: if a result cannot be written; names it and the cause.
        KeyboardInterrupt: with a message that says how to resume.
    """
    output = Path(output).expanduser()
    results = results or Results(model.output)
    if num_samples is not None:
        model.check_num_samples(num_samples)
    endings = results.endings(spread=num_samples is not None)
    stems, taken = result_stems(paths, output, endings)
    atomic.remove_leftovers(output, recursive=True)
    todo = [
        path
        for path in paths
        if not (skip_existing and all(_with(stems[path], each).exists() for each in endings))
    ]
    failures: list[str] = []
    num_done = len(paths) - len(todo)
    bar = progress.bar(len(paths), num_done)
    speed = speed or progress.Speed()
    speed.start()
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

    def write(path: Path, prediction: Prediction, image: np.ndarray) -> None:
        # First, so that no spread is left next to a prediction it does not belong to.
        for stale in (_with(stems[path], each) for each in SPREAD_ENDINGS):
            if os.path.realpath(stale) not in taken:
                with naming_file(stale, "removed"):
                    stale.unlink(missing_ok=True)
        results.write(stems[path], *prediction, image)

    pool = ThreadPoolExecutor(_THREADS)
    writing: collections.deque[tuple[Path, Future]] = collections.deque()
    try:
        read = functools.partial(_read, spec=model.input_spec)
        for batch in _batches(pool, todo, read, batch_size, ahead, skip):
            images = list(batch.values())
            found = predictions(model, images, batch_size, num_samples, options)
            speed.add(len(batch))
            for path, image, prediction in zip(batch, images, found, strict=True):
                writing.append((path, pool.submit(write, path, prediction, image)))
            while len(writing) > ahead:
                finish(*writing.popleft())
        while writing:
            finish(*writing.popleft())
    except KeyboardInterrupt:
        while writing:  # what has already been computed
            finish(*writing.popleft())
        raise KeyboardInterrupt(
            f"{num_done} of {len(paths)} images are done; run the same command with "
            "--skip_existing to resume"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
        speed.stop()
    return failures


# Depth or relative disparity, and the spread of its samples, if any: [h, w] both.
Prediction = tuple[np.ndarray, np.ndarray | None]


def predictions(
    model: DepthModel,
    images: Sequence[np.ndarray],
    batch_size: int,
    num_samples: int | None,
    options: Mapping[str, Any],
) -> list[Prediction]:
    """The results of `DepthModel.predict`, image by image."""
    if num_samples is None:
        depths: Any = model.predict(images, batch_size=batch_size, **options)
        return [(each, None) for each in depths]
    found = model.predict(images, batch_size=batch_size, num_samples=num_samples, **options)
    return list(zip(*found, strict=True))


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
        except UserError as error:  # a bad file; bugs are not caught
            skip(path, error)
            continue
        waiting.setdefault(image.shape, {})[path] = image
        if len(waiting[image.shape]) == batch_size:
            yield waiting.pop(image.shape)
        elif sum(map(len, waiting.values())) >= 2 * ahead:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _is_bad_name(error: Exception) -> bool:
    """Whether only this one file cannot be written, because of its name."""
    return getattr(error.__cause__, "errno", None) in (errno.ENAMETOOLONG, errno.EILSEQ)


def result_stems(
    paths: Sequence[Path], output: Path, endings: Sequence[str]
) -> tuple[dict[Path, Path], set[str]]:
    """Each image's result paths, without endings; and the real paths of all files.

    Raises:
        ConfigError: if a result would replace a file of `paths`, or another result.
    """
    # Without "..", which could lead out of the output directory.
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    common = Path(os.path.commonpath([path.parent for path in absolute.values()]))
    taken = {os.path.realpath(path): path for path in paths}
    stems: dict[Path, Path] = {}
    for path in paths:
        stems[path] = output / absolute[path].relative_to(common).with_suffix("")
        for ending in endings:
            target = _with(stems[path], ending)
            place = os.path.realpath(target)
            other = taken.setdefault(place, path)
            if other is not path or place == os.path.realpath(path):
                raise ConfigError(
                    f"the result {target} of {path} would overwrite that of {other}: use another "
                    "output directory, or predict them separately"
                )
    return stems, set(taken)


def _with(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)
