"""Failures of background threads, which are reported once.

When a checkpoint cannot be written, every thread of Orbax logs it with its own traceback,
TensorStore prints one more for each array that was waiting, and asyncio logs those that failed
after the first. `Checkpointer` raises them as one error, in the thread that can handle it.
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
    """Keeps Orbax from logging errors inside; `--verbosity=1` shows them anyway."""
    logger = logging.get_absl_logger()
    if logging.get_verbosity() >= logging.DEBUG:
        yield
        return
    # TensorStore's threads may be late, and asyncio reports a failure when its object is collected,
    # perhaps at the end of the program. So these two stay.
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
    """Whether asyncio reports anything but an exception that was never retrieved."""
    return "exception was never retrieved" not in record.getMessage()


class _Hook:
    """`sys.unraisablehook` without what TensorStore raises where Orbax has given up on an array."""

    def __init__(self) -> None:
        self.others = sys.unraisablehook

    def __call__(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.others(unraisable)


_hook = _Hook()
