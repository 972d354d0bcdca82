"""Starts worker processes, drives them with JSON lines, and restarts them if they fail or hang.

`worker.py` describes the protocol. This is the host side, which does not depend on PyTorch.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from diffdepth_jax.adverse.backends import Item, Outcome
from diffdepth_jax.errors import (
    ConfigError,
    FileError,
    MissingPackageError,
    UserError,
    WeightsError,
    naming_file,
)
from diffdepth_jax.weights.text import shown

PROTOCOL = 1

_REFUSALS = {"package": MissingPackageError, "weights": WeightsError}
_STARTS = 3  # attempts to start a process that keeps getting killed
_CULPRITS = (
    3  # consecutive images that crash the process before something else is assumed to be the cause
)
_CLOSING = 10.0  # seconds
_JOIN = 1.0  # seconds
_TAIL = 4000  # last bytes of a log, which may contain the cause


class WorkerFailure(Exception):
    """A process died, hung or gave an invalid reply; the message completes "the worker ..."."""

    def __init__(self, message: str, *, killed: bool = False):
        super().__init__(message)
        self.killed = killed  # by an external signal


class Process:
    """A running worker.

    Args:
        command: the interpreter and its arguments.
        log: file that its standard error is appended to.
        environment: variables in addition to this process's.
        timeout: seconds without output after which it counts as hung.

    Raises:
        FileError: if it cannot be started, or the log cannot be written.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], timeout: float
    ):
        self.log, self._timeout = log, timeout
        self._in_order = True  # no failure so far
        self.handshake: Mapping[str, Any] = {}  # set by the caller that opened it
        with naming_file(log, "written"):
            self._log: IO[bytes] = log.open("ab")
            self._log_start = self._log.seek(0, os.SEEK_END)
        try:
            with naming_file(command[0], "started"):
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    env={**os.environ, **environment},
                    start_new_session=True,  # this process handles Ctrl-C
                )
        except UserError:
            self._log.close()
            raise
        # Not None, as pipes were requested above.
        self._stdin = cast(IO[bytes], self._process.stdin)
        self._stdout = cast(IO[bytes], self._process.stdout)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in iter(self._stdout.readline, b""):
            self._lines.put(line)
        self._lines.put(b"")  # end of the stream

    def send(self, **request: Any) -> None:
        """Sends a request.

        Raises:
            WorkerFailure: if the process has ended.
        """
        try:
            self._stdin.write(json.dumps(request).encode() + b"\n")
            self._stdin.flush()
        except (OSError, ValueError) as error:
            # ValueError: the process was killed from here, which closed the pipe.
            raise self._gone() from error

    def receive(self) -> dict[str, Any]:
        """The next reply other than a heartbeat.

        Raises:
            WorkerFailure: if the process dies, is silent for too long, or gives an invalid reply.
            UserError: if it rejects the request; gives the reason.
        """
        while True:
            try:
                line = self._lines.get(timeout=self._timeout)
            except queue.Empty:
                self.kill()
                raise WorkerFailure(f"did not respond for {self._timeout:g} seconds") from None
            if not line.endswith(b"\n"):
                raise self._gone()
            try:
                reply = json.loads(line)
            except (ValueError, RecursionError):
                reply = None
            if not isinstance(reply, dict):
                self.kill()
                text = shown(line.decode(errors="replace").strip(), 100)
                raise WorkerFailure(f"sent {text!r}, which is not a valid reply")
            if "progress" in reply:
                continue
            self._in_order &= "error" not in reply
            if "kind" in reply:
                raise _REFUSALS.get(reply["kind"], ConfigError)(str(reply.get("error")))
            return reply

    def close(self) -> None:
        """Asks the process to end, and kills it if it does not.

        Its log is removed if there was no failure, neither of this process nor of an earlier one
        with the same log.
        """
        try:
            self.send(close=True)
            self._stdin.close()
            self._in_order &= self._process.wait(_CLOSING) == 0
        except (WorkerFailure, OSError, subprocess.TimeoutExpired):
            self._in_order = False
        self.kill()
        if self._in_order and not self._log_start:  # else, an error may refer to the log
            self.log.unlink(missing_ok=True)

    def kill(self) -> None:
        """Kills the process, unless it has already ended."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # requests that it has not read
            self._stdin.close()
        self._reader.join(1.0)
        if not self._reader.is_alive():  # unless a child process is still running
            self._stdout.close()
        self._log.close()

    def _gone(self) -> WorkerFailure:
        try:  # it may only have closed its output
            code = self._process.wait(_CLOSING)
        except subprocess.TimeoutExpired:
            self.kill()
            code = None
        if code is None:
            return WorkerFailure("closed its output" + self._last_words())
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else -code
            hint = ", which systems send when memory runs out" if -code == signal.SIGKILL else ""
            return WorkerFailure(
                f"was killed by signal {name}{hint}{self._last_words()}", killed=True
            )
        return WorkerFailure(f"exited with status {code}{self._last_words()}")

    def _last_words(self) -> str:
        """The last line that it printed, and where to find the rest."""
        try:
            with self.log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, end - _TAIL))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            lines = []
        words = [line.strip() for line in lines if line.strip()]
        return f" ({shown(words[-1], 300)}; see {self.log})" if words else ""


def unusable(interpreter: str, failure: WorkerFailure) -> FileError:
    """The error for a worker that never started properly."""
    return FileError(
        f"the worker run by {interpreter} {failure}: run `make torch`, or use --python to select "
        "an interpreter with PyTorch and diffusers"
    )


def started(start: Callable[[], Process], interpreter: str) -> Process:
    """The first worker, opened.

    Raises:
        FileError: if it cannot be started.
        UserError: as in `start`.
    """
    for attempt in range(_STARTS):
        try:
            return start()
        except WorkerFailure as failure:
            if not failure.killed or attempt + 1 == _STARTS:
                raise unusable(interpreter, failure) from failure
    raise AssertionError


@dataclasses.dataclass(frozen=True)
class Task:
    """Items of equal size that go through the generator as a batch.

    Attributes:
        items: in order.
        messages: what is sent to the worker for each item.
    """

    items: tuple[Item, ...]
    messages: tuple[Mapping[str, Any], ...]


class _Shared:
    """An iterable shared by several threads."""

    def __init__(self, tasks: Iterable[Task]):
        self._tasks, self._lock = iter(tasks), threading.Lock()

    def next(self) -> Task | None:
        with self._lock:
            return next(self._tasks, None)


class Pool:
    """Several workers that take tasks from one queue.

    If a worker fails, its task is sent again unchanged. If that fails too, its images are sent one
    by one, and an image on which the worker fails again is given up.

    Args:
        start: `(index) -> process`, returns an opened process. Raises `WorkerFailure` or
            `UserError`.
        first: the process of index 0, already open.
        count: number of workers.
    """

    def __init__(self, start: Callable[[int], Process], first: Process, count: int):
        self._start, self._count = start, count
        self._processes: list[Process | None] = [first, *[None] * (count - 1)]
        self._lock = threading.Lock()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The first worker's reply to a request."""
        for attempt in range(_STARTS):
            try:
                process = self._process(0)
                process.send(**request)
                return process.receive()
            except WorkerFailure as failure:
                self._drop(0)
                if attempt + 1 == _STARTS:
                    raise FileError(f"the worker {failure}") from failure
        raise AssertionError

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """One outcome for each item of each task, as soon as it is known.

        Tasks are only taken from the iterable when a worker is free.

        Raises:
            UserError: if workers fail before generating any image, or the disk is full.
        """
        waiting = _Shared(tasks)
        results: queue.SimpleQueue[Outcome | Exception | None] = queue.SimpleQueue()
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._serve, args=(i, waiting, results, stop), daemon=True)
            for i in range(self._count)
        ]
        for thread in threads:
            thread.start()
        try:
            running = len(threads)
            while running:
                result = results.get()
                if result is None:
                    running -= 1
                elif isinstance(result, Outcome):
                    yield result
                else:
                    raise result
        except BaseException:
            # A busy process does not read requests, so it is killed. A process that is being
            # started is ended by the thread that starts it.
            with self._lock:
                stop.set()
            self.kill()
            for thread in threads:
                thread.join(_JOIN)
            raise

    def close(self) -> None:
        """Ends all workers."""
        for index, process in enumerate(self._processes):
            if process is not None:
                process.close()
                self._processes[index] = None

    def kill(self) -> None:
        """Ends all workers immediately."""
        for index in range(self._count):
            self._drop(index)

    def _serve(
        self,
        index: int,
        waiting: "_Shared",
        results: "queue.SimpleQueue[Outcome | Exception | None]",
        stop: threading.Event,
    ) -> None:
        culprits = 0  # consecutive
        try:
            while not stop.is_set() and (task := waiting.next()) is not None:
                for outcome, failure in self._outcomes(index, task, stop):
                    results.put(outcome)
                    culprits = culprits + 1 if failure is not None else 0
                    if culprits == _CULPRITS:
                        raise FileError(
                            f"{culprits} images in a row have failed because the worker {failure}; "
                            "the rest would fail too"
                        )
        except Exception as error:
            results.put(error)
        finally:
            results.put(None)

    def _outcomes(
        self, index: int, task: Task, stop: threading.Event
    ) -> Iterator[tuple[Outcome, WorkerFailure | None]]:
        """Outcomes of a task, each with the failure if the item crashed its worker."""
        pending = {item.key: item for item in task.items}
        failures = 0
        while pending and not stop.is_set():
            messages = task.messages
            if alone := failures > 1 or (failures == 1 and len(task.items) == 1):
                # One by one; for a single image, this is the second attempt.
                messages = tuple(each for each in messages if each["key"] in pending)
            try:
                process = self._process(index, stop)
                process.send(batch=messages, at_most=1 if alone else None)
                answered: set[str] = set()
                while len(answered) < len(messages):
                    reply = process.receive()
                    key = str(reply.get("key"))
                    if key not in {each["key"] for each in messages} - answered:
                        process.kill()
                        raise WorkerFailure(f"replied {shown(str(reply), 100)} to a batch")
                    answered.add(key)
                    if reply.get("fatal"):
                        raise FileError(str(reply["error"]))
                    if pending.pop(key, None) is not None:
                        yield _outcome(reply), None
            except WorkerFailure as failure:
                self._drop(index)
                for each in task.messages:  # partial files that it was writing
                    Path(each["temporary"]).unlink(missing_ok=True)
                if stop.is_set():
                    return
                failures += 1
                if alone and pending:
                    key = next(iter(pending))
                    del pending[key]
                    yield Outcome(key, f"the worker {failure}, for the second time"), failure

    def _process(self, index: int, stop: threading.Event | None = None) -> Process:
        """The open process with this index; started if necessary."""
        for attempt in range(_STARTS):
            with self._lock:
                process = self._processes[index]
            if process is not None:
                return process
            try:
                process = self._start(index)
            except WorkerFailure as failure:
                if attempt + 1 == _STARTS:
                    raise FileError(f"the worker cannot be started: it {failure}") from failure
                continue
            with self._lock:
                if stop is None or not stop.is_set():
                    self._processes[index] = process
                    return process
            process.kill()
            raise WorkerFailure("is no longer needed")
        raise AssertionError

    def _drop(self, index: int) -> None:
        with self._lock:
            process, self._processes[index] = self._processes[index], None
        if process is not None:
            process.kill()


def _outcome(reply: Mapping[str, Any]) -> Outcome:
    details = {name: reply[name] for name in ("flagged", "reduced_batch") if reply.get(name)}
    error = reply.get("error")
    return Outcome(str(reply["key"]), None if error is None else str(error), details)
