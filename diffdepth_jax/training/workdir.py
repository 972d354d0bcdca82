"""A run's directory, used by one run at a time and shared by all its processes."""

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
    """Creates the directory if needed, and locks it against other runs.

    Partial files of killed processes are removed first. A new directory is removed again if nothing
    was written to it, for example because of a user error.

    Args:
        path: the directory.
        processes: the run's processes; the first holds the lock for all.

    Raises:
        FileError: if another run uses it, it is not writable, or a process does not see it.
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
                    "writes to: use a directory on a file system shared by all machines of the "
                    "run"
                )
    finally:
        if processes.is_first:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    with atomic.directory(path), locking.hold(path, "training"):
        atomic.remove_leftovers(path)
        yield
