"""Files that are whole or absent, whatever interrupts their writing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file under a temporary name beside it and renames it.

    Args:
        path: in a directory that exists; what is there already stays until the new file is whole.
        write: is given the open binary file.

    Raises:
        OSError: if the file cannot be written. After that, or whatever `write` raises, `path` is as
            it was and the temporary file is gone.
    """
    path = Path(path)
    # Hidden and of another suffix, so that no search for results finds a half-written one.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text; see `write`."""
    write(path, lambda file: file.write(text.encode()))
