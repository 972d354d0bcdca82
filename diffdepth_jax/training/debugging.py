"""Where a number that is not one came from."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_LIBRARIES = "site-packages"


def find_nan(function: Callable[..., Any], *arguments: Any) -> str:
    """Runs a pure function one operation at a time, up to the first that returns NaN.

    Slow, and far slower where there are loops.

    Args:
      function: not jitted; also what it differentiates is looked into, forward and backward.
      *arguments: which made it return NaN.

    Returns:
      The operation's name in JAX, and the line of the source that asked for it.
    """
    try:
        with jax.disable_jit(), jax.debug_nans(True):
            function(*jax.device_put(arguments))
    except FloatingPointError as error:
        # Of an operation that JAX has transformed, the cause tells where it was written.
        frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
        own = Path(__file__).parents[1]
        frame = [
            frame
            for frame in frames
            if _LIBRARIES not in frame.filename or own in Path(frame.filename).parents
        ][-1]
        return f"{error} at {frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}"
    return "no operation returned NaN when they were run one at a time: look for an overflow"
