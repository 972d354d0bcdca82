"""Text out of files that anybody may have made: shown in a terminal, read as JSON."""

import json
from typing import Any

from diffdepth_jax.errors import WeightsError, printable

_SHOWN = 2000  # characters: some lines of a terminal


def shown(text: str, limit: int = _SHOWN) -> str:
    """Text that a terminal can show: no control characters, of bounded length, one line.

    Names in files of weights can hold what moves the cursor, recolours or clears the screen; such
    characters, and others that cannot be printed, are written as in Python's source.
    """
    cut = text if len(text) <= limit else text[:limit] + " ..."
    return printable(cut).replace("\n", "\\n")


def parse_json(text: str, what: str) -> Any:
    """The value of JSON text.

    Args:
        text: as a file has it.
        what: names it in the error.

    Raises:
        WeightsError: if it is not valid JSON, or nested more deeply than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise WeightsError(f"{what} is JSON nested too deeply") from error
    except ValueError as error:
        raise WeightsError(f"{what} is not valid JSON: {shown(str(error))}") from error
