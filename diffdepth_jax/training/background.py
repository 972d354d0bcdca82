"""Failures of background threads, which are reported once.

When a checkpoint cannot be written, every thread of Orbax logs it with a traceback of its own, and
TensorStore prints one more for each array that was waiting. `Checkpointer` raises the same as one
error, in the thread that can answer it.
"""

import contextlib
import sys
from collections.abc import Iterator
from logging import ERROR, LogRecord
from pathlib import Path

from absl import logging


@contextlib.contextmanager
def reported_once() -> Iterator[None]:
    """Keeps Orbax from logging errors in the meantime; `--verbosity=1` shows them anyway."""
    logger = logging.get_absl_logger()
    if logging.get_verbosity() >= logging.DEBUG:
        yield
        return
    # TensorStore's threads may be late, so this hook stays.
    if sys.unraisablehook is not _hook:
        _hook.others, sys.unraisablehook = sys.unraisablehook, _hook
    logger.addFilter(_is_no_error_of_orbax)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_error_of_orbax)


def _is_no_error_of_orbax(record: LogRecord) -> bool:
    return record.levelno < ERROR or "orbax" not in Path(record.pathname).parts


class _Hook:
    """`sys.unraisablehook` without what TensorStore raises where Orbax has given up on an array."""

    def __init__(self) -> None:
        self.others = sys.unraisablehook

    def __call__(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.others(unraisable)


_hook = _Hook()
