"""Reads and writes videos with the ffmpeg found by, or bundled with, imageio-ffmpeg.

ffmpeg is run directly: that package's own reader and writer fork Python, which JAX warns about, and
do not report a video that ffmpeg could not finish.
"""

import contextlib
import dataclasses
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import UInt8

from diffdepth_jax.errors import DataError, FileError, MissingPackageError, naming_file, printable

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")

_FASTEST = 480  # frames per second; a higher rate is the time base of a variable frame rate
_Y4M = re.compile(rb"YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+) ")
_QUALITY = 18  # x264's constant rate factor, visually lossless for smooth colour maps


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file.

    Attributes:
        path: path of the file.
        height, width: size of displayed frames in pixels, after rotation metadata is applied.
        rate: frames per second.
    """

    path: Path
    height: int
    width: int
    rate: Fraction


def executable() -> str:
    """The path of ffmpeg.

    Raises:
        MissingPackageError: if the optional package imageio-ffmpeg is not installed, or finds no
            ffmpeg.
    """
    try:
        import imageio_ffmpeg  # an extra
    except ImportError as error:
        raise MissingPackageError(
            "videos need the package imageio-ffmpeg: pip install 'diffdepth_jax[video]'"
        ) from error
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise MissingPackageError(
            "videos need ffmpeg, and imageio-ffmpeg has none for this system: install ffmpeg, or "
            "set IMAGEIO_FFMPEG_EXE to its path"
        ) from error


def open_video(path: Path) -> Video:
    """Reads the size and the frame rate of a video.

    Raises:
        FileError: if there is no such file (`MissingFileError`), or it cannot be read.
        DataError: if it is not a video, or its frame rate is variable.
        MissingPackageError: see `executable`.
    """
    with naming_file(path, "read"):
        path.open("rb").close()
    # This format states both exactly; ffmpeg's log rounds them and is not meant to be parsed.
    wanted = ["-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "-"]
    with _process(_reading(path, *wanted), stdout=subprocess.PIPE) as (process, log):
        assert process.stdout is not None
        header = _Y4M.match(process.stdout.readline())
        process.stdout.close()
        process.wait()
        if not header:
            raise DataError(f"{path} cannot be read as a video: {_reason(log, path)}")
    width, height, numerator, denominator = map(int, header.groups())
    if not 0 < numerator <= _FASTEST * denominator:
        raise DataError(
            f"{path} has a variable frame rate: convert it first, for example with ffmpeg -i IN -r "
            "30 OUT.mp4"
        )
    return Video(path, height, width, Fraction(numerator, denominator))


def frames(video: Video) -> Generator[UInt8[np.ndarray, "h w 3"]]:
    """The frames of a video as RGB, at a constant rate.

    Damage that ffmpeg can skip only gives a warning.

    Raises:
        DataError: if the video cannot be read to its end.
    """
    rate = f"{video.rate.numerator}/{video.rate.denominator}"
    wanted = ["-r", rate, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    with _process(_reading(video.path, *wanted), stdout=subprocess.PIPE) as (process, log):
        assert process.stdout is not None
        while True:
            frame = np.empty((video.height, video.width, 3), np.uint8)
            count = process.stdout.readinto(frame.reshape(-1).data)  # type: ignore[attr-defined]
            if count < frame.size:
                break
            yield frame
        if process.wait() or count:
            raise DataError(f"{video.path} cannot be read to its end: {_reason(log, video.path)}")
        if _text(log):
            warnings.warn(f"{video.path} is damaged: {_reason(log, video.path)}", stacklevel=2)


@contextlib.contextmanager
def writing(
    path: Path, height: int, width: int, rate: Fraction, *, name: Path | None = None
) -> Iterator[Callable[[UInt8[np.ndarray, "h w 3"]], None]]:
    """Writes an MP4 (H.264), which is complete when the context ends.

    Args:
        path: the file, with any suffix; use `atomic.replacing` to write it atomically.
        height, width: frame size in pixels. Odd sizes are stored with full colour resolution, which
            some players do not support.
        rate: frames per second.
        name: the file's name in errors; None for `path`.

    Yields:
        A function that writes the next frame, RGB.

    Raises:
        FileError: if it cannot be written.
        MissingPackageError: see `executable`.
    """
    subsampled = height % 2 == width % 2 == 0
    arguments = [
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"),
        *("-r", f"{rate.numerator}/{rate.denominator}", "-i", "-"),
        *("-vf", "scale=out_color_matrix=bt709:out_range=tv"),
        *("-colorspace", "bt709", "-c:v", "libx264", "-crf", str(_QUALITY)),
        *("-pix_fmt", "yuv420p" if subsampled else "yuv444p"),
        *("-movflags", "+faststart", "-f", "mp4", "-y", f"file:{path}"),
    ]
    with _process(arguments, stdin=subprocess.PIPE) as (process, log):
        stdin = process.stdin
        assert stdin is not None

        def failed() -> FileError:
            process.wait()
            return FileError(f"{name or path} cannot be written: {_reason(log, path)}")

        def write(frame: UInt8[np.ndarray, "h w 3"]) -> None:
            try:
                stdin.write(np.ascontiguousarray(frame).data)
            except BrokenPipeError as error:
                raise failed() from error

        yield write
        with contextlib.suppress(BrokenPipeError):  # the exit status shows it too
            stdin.close()
        if process.wait():
            raise failed()


def _reading(path: Path, *output: str) -> list[str]:
    # "file:" because a name may look like a URL
    return ["-i", f"file:{path}", "-map", "0:v:0", *output]


@contextlib.contextmanager
def _process(
    arguments: Sequence[str], *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A running ffmpeg and the file for its errors; it has ended when the context ends."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [executable(), "-hide_banner", "-nostdin", "-loglevel", "error", *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=log,
            process_group=0,  # only this process handles Ctrl-C
        )
        try:
            yield process, log
        finally:
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            process.wait()


def _text(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip()


def _reason(log: IO[bytes], path: Path) -> str:
    """The last line of ffmpeg's errors."""
    lines = _text(log).splitlines() or ["ffmpeg gave no reason"]
    return printable(lines[-1].replace(f"file:{path}: ", ""))
