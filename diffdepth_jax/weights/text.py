"""Handles text from untrusted files: shows it in a terminal, reads it as JSON."""

import json
from typing import Any

from diffdepth_jax.errors import WeightsError, printable

_SHOWN = 2000  # characters, a few lines of a terminal


def shown(text: str, limit: int = _SHOWN) -> str:
    """Makes text safe for a terminal: one line of limited length, no control characters.

    Names in weights files can contain characters that move the cursor, or recolour or clear the
    screen; these and other unprintable characters are escaped as in Python source.
    """
    cut = text if len(text) <= limit else text[:limit] + " ..."
    return printable(cut).replace("\n", "\\n")


def parse_json(text: str, what: str) -> Any:
    """Parses JSON text.

    Args:
        text: the content of a file.
        what: what it is, for errors.

    Raises:
        WeightsError: if it is not valid JSON, or nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise WeightsError(f"{what} is too deeply nested JSON") from error
    except ValueError as error:
        raise WeightsError(f"{what} is not valid JSON: {shown(str(error))}") from error
