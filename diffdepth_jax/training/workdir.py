"""The directory of a run, which belongs to one process at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from diffdepth_jax import atomic, locking


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Makes the directory if need be, and keeps other runs away from it until the end.

    Half-written files of killed processes are removed first. A new directory into which nothing
    was written, because a mistake was reported first, is removed again.

    Raises:
      FileError: if another run holds it, or it cannot be written.
    """
    with atomic.directory(path), locking.hold(path, "training"):
        atomic.remove_leftovers(path)
        yield
