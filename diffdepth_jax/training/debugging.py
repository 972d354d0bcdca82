"""Finds the operation that produced a NaN."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_LIBRARIES = "site-packages"


def find_nan(function: Callable[..., Any], *arguments: Any) -> str:
    """Runs a pure function one operation at a time, until one returns NaN.

    Slow, and far slower with loops.

    Args:
        function: must not be jitted; what it differentiates is checked in both passes.
        *arguments: arguments for which it returns NaN.

    Returns:
        The JAX operation's name and the source line that called it.
    """
    try:
        with jax.disable_jit(), jax.debug_nans(True):
            function(*jax.device_put(arguments))
    except FloatingPointError as error:
        # For an operation that JAX transformed, the exception's cause has the source line.
        frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
        own = Path(__file__).parents[1]
        frame = [
            frame
            for frame in frames
            if _LIBRARIES not in frame.filename or own in Path(frame.filename).parents
        ][-1]
        return f"{error} at {frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}"
    return "no operation returned NaN when run one at a time: look for an overflow"


class Watched:
    """A training step that remembers its last arguments, so that a NaN can be traced afterwards.

    Args:
        step: the compiled step, which must not donate its state.
        function: the same step, not jitted.
    """

    def __init__(self, step: Callable[..., Any], function: Callable[..., Any]) -> None:
        self._step, self._function = step, function
        self._arguments: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> Any:
        self._arguments = arguments
        return self._step(*arguments)

    def explain(self) -> str:
        """Like `find_nan`, for the last step."""
        return find_nan(self._function, *self._arguments)
