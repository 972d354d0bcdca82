"""Communication between the processes of a run; an error in one stops all.

Every exchange is a round in which each process sends a value or its error. All processes take part
in the same rounds in the same order. An error in a round is raised in every process, so that none
waits for one that has stopped.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from diffdepth_jax import errors
from diffdepth_jax.errors import UserError

Exchange = Callable[[bytes], list[bytes]]

_KNOWN = "known_to_all"  # attribute of errors that the other processes know about


class Processes:
    """The processes of a run, as seen by one of them; by default just this one.

    Args:
        index: this process's index, from 0.
        count: number of processes.
        exchange: returns the messages of all processes, in order, to each of them; not needed for a
            single process.
    """

    def __init__(self, index: int = 0, count: int = 1, exchange: Exchange | None = None) -> None:
        if not 0 <= index < count or (count > 1 and exchange is None):
            raise ValueError(f"process {index} of {count} with exchange {exchange}")
        self.index, self.count = index, count
        self._exchange = exchange

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes logs, results and images."""
        return self.index == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order.

        Args:
            value: must be JSON-compatible.

        Raises:
            UserError: if another process meanwhile raised one in `agreed` or `from_first`; has the
                same class, and names the process.
            RuntimeError: if it raised any other exception.
        """
        if self.count == 1 or self._exchange is None:
            return [value]
        messages = self._exchange(json.dumps({"value": value}).encode())
        found = [json.loads(message) for message in messages]
        for index, each in enumerate(found):
            if "error" in each:
                _raise(index, each)
        return [each["value"] for each in found]

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """A context that ends when all processes have reached its end; an error in one is raised in
        all.

        Raises:
            UserError, RuntimeError: as in `gather`; this process's own error is raised unchanged.
        """
        try:
            yield
        except Exception as error:
            self._report(error)
            raise
        self.gather(None)

    def from_first(self, function: Callable[[], Any]) -> Any:
        """The result of a function that only the first process calls; its error is raised in all.

        Args:
            function: takes no arguments; its result must be JSON-compatible.
        """
        result = None
        with self.agreed():
            if self.is_first:
                result = function()
        return self.gather(result)[0]

    def _report(self, error: Exception) -> None:
        """Reports this process's error to the others, once."""
        if self.count == 1 or self._exchange is None or getattr(error, _KNOWN, False):
            return
        setattr(error, _KNOWN, True)
        kind = type(error).__name__
        message = {"error": kind, "message": str(error), "by_user": isinstance(error, UserError)}
        self._exchange(json.dumps(message).encode())


def _raise(index: int, found: dict[str, Any]) -> NoReturn:
    """Raises the error of another process."""
    message = f"process {index}: {found['message']}"
    error: Exception = RuntimeError(f"process {index} failed: {found['error']}: {found['message']}")
    if found["by_user"]:
        error = getattr(errors, found["error"], UserError)(message)
    setattr(error, _KNOWN, True)
    raise error
