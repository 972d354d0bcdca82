"""Locks a directory, so that only one process at a time uses it for a given purpose.

The lock is an operating system lock (`flock`), not the existence of a file: it ends with the
process that holds it, even after `kill -9` or a crash of the machine, so there are no stale locks.
The file `DIRECTORY/.NAME.lock` only names the holder, and is removed when the holder is done.

On Linux, locks on NFS work across machines; some network file systems only support them within one
machine or not at all, and Windows has no `flock`. Without locks, a warning is logged and work
continues unprotected.
"""

import contextlib
import datetime
import errno
import os
import shlex
import socket
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from diffdepth_jax.errors import FileError, naming_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold(directory: str | os.PathLike[str], name: str) -> Iterator[None]:
    """Excludes other processes, and other callers in this process, from the same work.

    Args:
        directory: must exist.
        name: name of the work, such as "training"; used in a file name. Different names do not
          exclude each other.

    Raises:
        FileError: if it is already locked, with the holder and since when; or if the lock file
          cannot be written.
    """
    path = Path(directory) / f".{name}.lock"
    descriptor = _acquire(path, name)
    try:
        if descriptor is not None:
            with naming_file(path, "written"):
                os.ftruncate(descriptor, 0)  # left by a killed process
                os.pwrite(descriptor, _this_process().encode(errors="replace"), 0)
        yield
    finally:
        if descriptor is not None:
            # Removed while the lock is held: a process that has already opened it notices, once it
            # gets the lock, that it is no longer the file at this path.
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(path: Path, name: str) -> int | None:
    """The descriptor of the locked file; None if locks are not supported."""
    if fcntl is None:
        logging.warning(
            "%s: this system has no file locks, so it is not protected from other processes",
            path.parent,
        )
        return None
    while True:
        with naming_file(path, "written"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor
        except BlockingIOError as error:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
            holder = "".join(each for each in holder if each.isprintable())
            os.close(descriptor)
            raise FileError(
                f"{path.parent} is in use for {name} by {holder or 'another process'}: wait for it "
                "or stop it, or use another directory"
            ) from error
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise FileError(f"{path} cannot be locked: {error.strerror}") from error
            logging.warning(
                "%s: its file system has no locks, so it is not protected from other processes",
                path.parent,
            )
            path.unlink(missing_ok=True)
            return None
        os.close(descriptor)  # the holder has just finished and removed it


def _this_process() -> str:
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    command = shlex.join([Path(sys.executable).name, *sys.argv])
    command = textwrap.shorten(command, 200, placeholder=" ...")
    return f"process {os.getpid()} on {socket.gethostname()} since {now} ({command})"
