"""Errors with messages for the user.

Scripts print a `UserError` as one line and exit with status 2; any other exception is a bug and
keeps its traceback. So only raise one of these if the user can fix the problem, and name the value,
the file and the remedy.
"""

import contextlib
import difflib
import io
import os
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Base class. Subclasses also inherit from the matching built-in exception."""


class ConfigError(UserError, ValueError):
    """An invalid config, option or flag."""


class WeightsError(UserError, ValueError):
    """Weights that cannot be read or do not fit the model."""


class DataError(UserError, ValueError):
    """Images, depth maps or results that cannot be read or scored."""


class DivergedError(UserError, FloatingPointError):
    """Training whose loss or gradient is no longer finite."""


class FileError(UserError, OSError):
    """A file or directory that cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or directory that does not exist."""


class MissingPackageError(UserError, ImportError):
    """An optional package that is not installed."""


@contextlib.contextmanager
def naming_file(path: str | os.PathLike[str], action: str) -> Iterator[None]:
    """Turns an OSError in the context into a `FileError` "<path> cannot be <action>: <cause>".

    A `UserError` passes unchanged, and so does a Python error from calling a file method
    incorrectly.
    """
    try:
        yield
    except (UserError, io.UnsupportedOperation):
        raise
    except OSError as error:
        kind = MissingFileError if isinstance(error, FileNotFoundError) else FileError
        cause = error.strerror or str(error) or type(error).__name__
        raise kind(f"{path} cannot be {action}: {cause}") from error


def printable(text: str) -> str:
    """Makes text printable: control characters and undecodable bytes in file names become escape
    sequences such as "\\x1b". Line breaks are kept."""
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def did_you_mean(word: object, known: Iterable[object], *, listing: bool = True) -> str:
    """What follows an unknown name in a message: `; did you mean 'swin'? (known: resnet, swin)`.

    Args:
        word: the unknown name.
        known: those that exist.
        listing: whether to list them; without, it may be empty.
    """
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(word), names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(names)})" if listing else hint
