"""Predicts depth for videos and writes it as videos and as one file per frame."""

import collections
import contextlib
import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from diffdepth_jax import atomic, visualize
from diffdepth_jax.errors import DataError, FileError, printable
from diffdepth_jax.inference import ffmpeg, files, progress
from diffdepth_jax.inference.model import DepthModel
from diffdepth_jax.inference.preprocessing import check_size
from diffdepth_jax.inference.results import FORMATS, Results

T = TypeVar("T")
Frame = np.ndarray  # uint8 RGB [h, w, 3]

ENDING = "_depth.mp4"
_LOOKED_AT = 16  # frames of a video that determine its colour range
_OURS = re.compile(rf"\d{{6,}}(_spread)?\.({'|'.join(FORMATS)})")  # a frame's file
_THREADS = 2  # threads for the files of frames
_AHEAD = 4  # frames besides a batch that are read ahead or wait to be written


def predict_videos(
    model: DepthModel,
    paths: Sequence[Path],
    output: str | os.PathLike[str],
    results: Results,
    *,
    batch_size: int = 1,
    skip_existing: bool = False,
    num_samples: int | None = None,
    speed: progress.Speed | None = None,
    **options: Any,
) -> list[str]:
    """Predicts depth for videos and writes it as videos, and as files for each frame.

    `STEM_depth.mp4` has the video's size and frame rate. It is coloured like `STEM_colour.png` (see
    `Results`), but with one scale for the whole video, so that it does not flicker: from the
    smallest 2nd to the largest 98th percentile of 16 evenly spread frames, which are predicted
    first. Frames are predicted independently of each other, from the same noise.

    With formats in `results`, the directory `STEM_depth` has files for every frame: `000000.npy`,
    `000001.npy`, ... It replaces that of an earlier run. A video's results appear once it is
    finished, or not at all.

    Args:
        model: as returned by `load`.
        paths: video files.
        output: directory, created if needed; folders below the videos' common one are kept.
        results: how frames' files are written; none without formats.
        batch_size: frames predicted per call.
        skip_existing: skip videos whose results all exist.
        num_samples, **options: as in `DepthModel.predict`; a single sample determines the colour
          range.
        speed: counts frames.

    Returns:
        One line for each video that could not be read; the others are still processed.

    Raises:
        ConfigError: before any work, if a result would replace a video or another result, or the
          model cannot draw samples.
        FileError: if a result cannot be written, or the frames' directory has other files; names it
          and the cause.
        MissingPackageError: if the optional package imageio-ffmpeg is missing.
        KeyboardInterrupt: with a message that says how far it got.
    """
    ffmpeg.executable()
    output = Path(output).expanduser()
    if num_samples is not None:
        model.check_num_samples(num_samples)
    stems, _ = files.result_stems(paths, output, (ENDING,))
    atomic.remove_leftovers(output, recursive=True)
    speed = speed or progress.Speed()
    speed.start()
    failures = []
    for path in paths:
        work = _Work(model, results, stems[path], batch_size, num_samples, options, speed)
        if skip_existing and work.is_done():
            continue
        try:
            work.run(_opened(path))
        except DataError as error:
            failures.append(printable(f"skipped {path}: {error}"))
            print(failures[-1], file=sys.stderr)
    speed.stop()
    return failures


def _opened(path: Path) -> ffmpeg.Video:
    try:
        return ffmpeg.open_video(path)
    except FileError as error:
        raise DataError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class _Work:
    """Processes one video; see `predict_videos`."""

    model: DepthModel
    results: Results
    stem: Path
    batch_size: int
    num_samples: int | None
    options: Mapping[str, Any]
    speed: progress.Speed

    @property
    def target(self) -> Path:
        return self.stem.with_name(self.stem.name + ENDING)

    @property
    def folder(self) -> Path:
        return self.target.with_suffix("")

    def is_done(self) -> bool:
        # The directory is complete or absent, so checking the first frame is enough.
        endings = self.results.endings(spread=self.num_samples is not None)
        first = (self.folder / f"{_name(0)}{ending}" for ending in endings)
        return self.target.exists() and all(path.exists() for path in first)

    def run(self, video: ffmpeg.Video) -> None:
        check_size(video.height, video.width, self.model.input_spec)
        with contextlib.ExitStack() as stack:
            stack.enter_context(atomic.directory(self.target.parent))
            # Renamed in reverse order once everything is written, so that the video marks
            # completion.
            temporary = stack.enter_context(atomic.replacing(self.target))
            folder = None
            if self.results.formats:
                folder = stack.enter_context(
                    atomic.replacing_directory(
                        self.folder, lambda name: bool(_OURS.fullmatch(name))
                    )
                )
            bar = stack.enter_context(progress.bar(None, unit="frame"))
            bar.set_description(f"{video.path.name} (first pass)")
            count, paint = self._look(video, bar)
            bar.reset(total=count)
            bar.set_description(video.path.name)
            size = video.height, video.width
            write = stack.enter_context(
                ffmpeg.writing(temporary, *size, video.rate, name=self.target)
            )
            done = 0
            try:
                for number in self._predicted(video, lambda depth: write(paint(depth)), folder):
                    bar.update(number - done)
                    done = number
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{done} of {count} frames of {video.path} were done; an unfinished video "
                    "leaves no results"
                ) from None

    def _look(
        self, video: ffmpeg.Video, bar: tqdm
    ) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
        """The number of frames, and the function that colours their depth."""
        with contextlib.closing(ffmpeg.frames(video)) as frames:
            count, chosen = spread_out(_counted(frames, bar), _LOOKED_AT)
        if not count:
            raise DataError(f"{video.path} has no frames")
        found = self.model.predict(chosen, batch_size=self.batch_size, **self.options)
        if self.results.output == "metric_depth":
            lows, highs = zip(*map(visualize.depth_range, found), strict=True)
            return count, lambda depth: visualize.colour_depth(depth, min(lows), max(highs))
        lows, highs = zip(*map(visualize.disparity_range, found), strict=True)
        return count, lambda disparity: visualize.colour_disparity(disparity, min(lows), max(highs))

    def _predicted(
        self, video: ffmpeg.Video, show: Callable[[np.ndarray], Any], folder: Path | None
    ) -> Iterator[int]:
        """Predicts and writes; yields the number of frames written."""
        ahead = self.batch_size + _AHEAD
        writing: collections.deque[list[Future[Any]]] = collections.deque()
        number = done = 0
        with contextlib.ExitStack() as stack:
            frames = stack.enter_context(contextlib.closing(ffmpeg.frames(video)))
            reader, shower, writers = (
                stack.enter_context(_pool(threads)) for threads in (1, 1, _THREADS)
            )
            stream = _read_ahead(reader, frames, ahead)
            while batch := list(itertools.islice(stream, self.batch_size)):
                found = files.predictions(
                    self.model, batch, self.batch_size, self.num_samples, self.options
                )
                self.speed.add(len(batch))
                for image, (depth, spread) in zip(batch, found, strict=True):
                    tasks: list[Future[Any]] = [shower.submit(show, depth)]
                    if folder is not None:
                        stem = folder / _name(number)
                        tasks.append(writers.submit(self.results.write, stem, depth, spread, image))
                    writing.append(tasks)
                    number += 1
                while len(writing) > ahead:
                    done += _finished(writing.popleft())
                yield done
            while writing:
                done += _finished(writing.popleft())
            yield done


def _counted(items: Iterable[T], bar: tqdm) -> Iterator[T]:
    for item in items:
        yield item
        bar.update()


def _name(number: int) -> str:
    return f"{number:06d}"


def _finished(tasks: Iterable[Future[Any]]) -> int:
    for task in tasks:
        task.result()
    return 1


@contextlib.contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _read_ahead(pool: ThreadPoolExecutor, source: Iterator[T], ahead: int) -> Iterator[T]:
    """The items of a source, read ahead by a thread of the pool."""
    end = object()
    reading = collections.deque(pool.submit(next, source, end) for _ in range(ahead))
    while (item := reading.popleft().result()) is not end:
        reading.append(pool.submit(next, source, end))
        yield item  # type: ignore[misc]


def spread_out(items: Iterable[T], most: int) -> tuple[int, list[T]]:
    """Counts items and keeps at most `most` of them, evenly spaced.

    At most twice as many are in memory.
    """
    kept: list[T] = []
    stride, count = 1, 0
    for item in items:
        if count % stride == 0:
            kept.append(item)
            if len(kept) == 2 * most:
                kept = kept[::2]
                stride *= 2
        count += 1
    return count, kept[:: 1 if len(kept) <= most else 2]
