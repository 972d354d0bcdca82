"""The directory of a run, which belongs to one run at a time and which all its processes share."""

import contextlib
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

from diffdepth_jax import atomic, locking, run_files
from diffdepth_jax.errors import FileError, naming_file
from diffdepth_jax.processes import Processes


@contextlib.contextmanager
def held(path: Path, processes: Processes | None = None) -> Iterator[None]:
    """Creates the directory if needed, and keeps other runs out of it until the end.

    Half-written files of killed processes are removed first. A new directory into which nothing
    was written, because a mistake was reported first, is removed again.

    Args:
      path: of the directory.
      processes: of the run, of which the first holds it for all.

    Raises:
      FileError: if another run holds it, it cannot be written, or a process does not see it.
    """
    processes = processes or Processes()
    with contextlib.ExitStack() as stack:
        processes.from_first(lambda: stack.enter_context(_held(path)))
        if processes.count > 1:
            _check_shared(path, processes)
        yield


def _check_shared(path: Path, processes: Processes) -> None:
    """Raises FileError in all processes if one of them sees another directory at `path`."""
    file, token = path / run_files.PROCESSES, processes.gather(uuid.uuid4().hex)[0]
    try:
        processes.from_first(lambda: atomic.write_text(file, token))
        with processes.agreed(), naming_file(file, "read"):
            if not file.exists() or file.read_text() != token:
                raise FileError(
                    f"{path} on {socket.gethostname()} is not the directory that the first process "
                    "writes to: use one on a file system that all machines of the run share"
                )
    finally:
        if processes.is_first:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    with atomic.directory(path), locking.hold(path, "training"):
        atomic.remove_leftovers(path)
        yield
