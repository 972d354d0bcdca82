"""Handles SIGTERM and SIGINT as requests to stop, after training has saved its state."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal; its state has been saved.

    Attributes:
        exit_code: 128 + the signal's number, the shell's convention for a process killed by a
            signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Interruption:
    """Records a signal instead of ending the process; a context manager.

    A second signal acts as usual, as does a pending one on exit. Does nothing outside the main
    thread, where signals do not arrive.

    Attributes:
        requested: the received signal, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._message: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number)
        self._restore()
        if self._message is not None:
            self.answer(self._message)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def answer(self, message: str) -> None:
        """Raises `Interrupted` if a signal was received."""
        if self.requested is not None:
            raise Interrupted(f"{self.requested.name}: {message}", self.requested)

    @contextlib.contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """Inside the context, a signal raises `Interrupted` immediately."""
        self._message = message
        try:
            self.answer(message)
            yield
        finally:
            self._message = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
        if self.requested is not None and error is None:
            os.kill(os.getpid(), self.requested)
