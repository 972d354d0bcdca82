"""Text from untrusted files: shown in a terminal, read as JSON."""

import json
from typing import Any

from diffdepth_jax.errors import WeightsError, printable

_SHOWN = 2000  # characters: some lines of a terminal


def shown(text: str, limit: int = _SHOWN) -> str:
    """Text that is safe in a terminal: no control characters, bounded length, one line.

    Names in files of weights can hold characters that move the cursor, recolour or clear the
    screen; these, and others that cannot be printed, are escaped as in Python source.
    """
    cut = text if len(text) <= limit else text[:limit] + " ..."
    return printable(cut).replace("\n", "\\n")


def parse_json(text: str, what: str) -> Any:
    """The value of JSON text.

    Args:
        text: the content of a file.
        what: names it in the error.

    Raises:
        WeightsError: if it is not valid JSON, or nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise WeightsError(f"{what} is JSON nested too deeply") from error
    except ValueError as error:
        raise WeightsError(f"{what} is not valid JSON: {shown(str(error))}") from error
