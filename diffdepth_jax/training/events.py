"""Event files for TensorBoard."""

import contextlib
import itertools
import socket
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from diffdepth_jax.errors import naming_file


class EventWriter:
    """Writes a new file in `directory`; a context manager.

    Every event is written before its method returns: there is no thread or queue, so a full disk
    raises an error here, not in the background, and a killed process loses nothing.

    TensorBoard discards events after `first_step` in older files.

    Raises:
        FileError: from any method, if the file cannot be written; names it.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        self._path, self._file = _new_file(directory)
        with contextlib.ExitStack() as stack:
            stack.push(self)  # closes the file if it cannot be written
            self._write(Event(file_version="brain.Event:2"))
            self._write(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))
            stack.pop_all()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(Event(step=step, summary=summary.scalar(name, value)))

    def add_image(self, name: str, pixels: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        self._write(Event(step=step, summary=summary.image(name, pixels, dataformats="HWC")))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        payload = event.SerializeToString()
        length = struct.pack("<Q", len(payload))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, payload)]
        with naming_file(self._path, "written"):
            self._file.write(b"".join([length, checksums[0], payload, checksums[1]]))
            self._file.flush()

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(*[OSError] if error else []), naming_file(self._path, "written"):
            self._file.close()  # tries again to write what failed before


def _new_file(directory: Path) -> tuple[Path, BinaryIO]:
    """A file name that no other writer uses, however quickly they are created.

    TensorBoard reads files in name order, so names increase by second, and by a counter within a
    second.
    """
    with naming_file(directory, "written"):
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        for number in itertools.count(len(list(directory.glob("events.*")))):
            path = directory / f"{name}.{number:06d}"
            try:
                return path, path.open("xb")
            except FileExistsError:
                continue
    raise AssertionError("there is always a free number")
