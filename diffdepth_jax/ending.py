"""How scripts end, and how their output is handled.

Errors that users can fix (`errors.UserError`) end a script with one line on stderr and exit status
2, Ctrl-C with one line and 130. A closed or unread output does not end a run.
"""

import _thread
import contextlib
import inspect
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from absl import logging

from diffdepth_jax.errors import FileError, UserError, naming_file, printable


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """A context in which Ctrl-C ends the program immediately, with one line and exit status 130.

    Use it around imports of large libraries: a KeyboardInterrupt raised while an extension is
    loading can be lost.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> NoReturn:
        _print_line(f"{_script_name()}: interrupted")
        sys.stderr.flush()
        os._exit(128 + signal.SIGINT)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """A context that makes a script end properly.

    A `UserError` becomes one line on stderr and exit status 2, Ctrl-C one line and 130; the line is
    the KeyboardInterrupt's message, such as how to resume, if it has one. Any other exception is a
    bug and keeps its traceback. Ctrl-C works while garbage is collected or a lock changes hands,
    too. Output to a closed stdout or stderr, or one without a reader, is dropped.
    """
    # Users need a warning's message, not its line of code.
    warnings.formatwarning = lambda message, *_: f"warning: {printable(str(message))}\n"
    with _lasting_streams(), _lasting_interrupts():
        try:
            try:
                yield
            finally:
                sys.stdout.flush()
        except UserError as error:
            if logging.get_verbosity() >= logging.DEBUG:
                raise
            stop(str(error))
        except KeyboardInterrupt as interrupt:
            # Threads may take a moment to end; a second Ctrl-C does not wait for them.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            _print_line(f"{_script_name()}: {str(interrupt) or 'interrupted'}")
            sys.exit(128 + signal.SIGINT)


def stop(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit status 2."""
    _print_line(f"{_script_name()}: error: {message}")
    sys.exit(2)


def _script_name() -> str:
    return Path(sys.argv[0]).name  # an installed script is started with its full path


def _print_line(message: str) -> None:
    # Names in untrusted files could contain terminal control sequences.
    print(printable(message), file=sys.stderr)


# In the middle of these, which thread pools and queues use all the time, an exception leaves a lock
# in the wrong state: the program hangs, or ends with "release unlocked lock". The methods that wait
# are not among them, as they must end when interrupted.
_LOCKING = {
    method.__code__
    for name, method in vars(threading.Condition).items()
    if inspect.isfunction(method) and name not in ("wait", "wait_for")
}


@contextlib.contextmanager
def _lasting_interrupts() -> Iterator[None]:
    """A context that repeats Ctrl-C where its exception is dropped or does damage.

    Python drops exceptions in destructors and in callbacks of the garbage collector. JAX has such a
    callback, and a signal that arrives during a collection is handled in it. For the damage see
    `_LOCKING`.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    report = sys.unraisablehook

    def note_dropped(unraisable: "sys.UnraisableHookArgs") -> None:
        # Not subclasses: training answers its own interruption at the next step.
        if unraisable.exc_type is KeyboardInterrupt:
            _thread.start_new_thread(repeat, ())
        else:
            report(unraisable)

    def repeat() -> None:
        time.sleep(0.01)
        _thread.interrupt_main()

    unsafe = {note_dropped.__code__, *_LOCKING}

    def interrupt(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code in unsafe:
                _thread.start_new_thread(repeat, ())
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    sys.unraisablehook = note_dropped
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        sys.unraisablehook = report
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class _Lasting:
    """A standard stream that drops output once its reader is gone.

    Other failures are raised as a `FileError`, once.
    """

    def __init__(self, stream: Any, dropped: type[OSError]):
        self._stream = stream
        self._dropped = dropped

    def write(self, text: str) -> int:
        with self._failing():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._failing():
            self._stream.flush()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            with naming_file("standard output", "written"):
                yield
        except FileError as error:
            self._drop()
            if not isinstance(error.__cause__, self._dropped):
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self) -> None:
        # Also below Python, for libraries and for buffered output.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _lasting_streams() -> Iterator[None]:
    # A closed descriptor would be reused for the next file, which libraries would then print into.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
    streams = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        out, err = (stream or nowhere for stream in streams)
        # Names may not be UTF-8, and the terminal may not support all of it.
        out.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        # A full disk is reported for stdout, as results may go there; for stderr it cannot be.
        sys.stdout, sys.stderr = _Lasting(out, BrokenPipeError), _Lasting(err, OSError)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = streams
