"""Keeps failures in background threads from being reported more than once.

When a checkpoint cannot be written, every Orbax thread logs its own traceback, TensorStore prints
another for each waiting array, and asyncio logs those that failed after the first. `Checkpointer`
raises a single error instead, in the thread that can handle it.
"""

import contextlib
import logging as standard_logging
import sys
from collections.abc import Iterator
from logging import ERROR, LogRecord
from pathlib import Path

from absl import logging


@contextlib.contextmanager
def reported_once() -> Iterator[None]:
    """Suppresses Orbax's error logs inside the context, except with `--verbosity=1`."""
    logger = logging.get_absl_logger()
    if logging.get_verbosity() >= logging.DEBUG:
        yield
        return
    # TensorStore's threads may be late, and asyncio reports a failure when its object is garbage
    # collected, perhaps at exit. So these two filters stay installed.
    if sys.unraisablehook is not _hook:
        _hook.others, sys.unraisablehook = sys.unraisablehook, _hook
    standard_logging.getLogger("asyncio").addFilter(_is_retrieved)
    logger.addFilter(_is_no_error_of_orbax)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_error_of_orbax)


def _is_no_error_of_orbax(record: LogRecord) -> bool:
    return record.levelno < ERROR or "orbax" not in Path(record.pathname).parts


def _is_retrieved(record: LogRecord) -> bool:
    """Whether asyncio reports anything other than an exception that was never retrieved."""
    return "exception was never retrieved" not in record.getMessage()


class _Hook:
    """`sys.unraisablehook` without TensorStore's errors for arrays that Orbax has abandoned."""

    def __init__(self) -> None:
        self.others = sys.unraisablehook

    def __call__(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.others(unraisable)


_hook = _Hook()
