"""Errors whose message is meant for the user.

Scripts print a `UserError` in one line and exit with status 2; every other exception is a fault of
the program and keeps its traceback. So raise one of these only where the user can do something
about it, and name the value, the file and the remedy.
"""

import contextlib
import difflib
import io
import os
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """The base class; raised by its subclasses, which are also what Python calls such an error."""


class ConfigError(UserError, ValueError):
    """A config, option or flag that cannot be used."""


class WeightsError(UserError, ValueError):
    """Weights that cannot be read, or that do not fit the model they were meant for."""


class DataError(UserError, ValueError):
    """Images, depth maps or results that cannot be read or scored."""


class DivergedError(UserError, FloatingPointError):
    """A training whose loss or gradient has stopped being finite."""


class FileError(UserError, OSError):
    """A file or directory that cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or directory that does not exist."""


class MissingPackageError(UserError, ImportError):
    """An optional package that is not installed."""


@contextlib.contextmanager
def naming_file(path: str | os.PathLike[str], action: str) -> Iterator[None]:
    """Turns an OSError raised inside into a `FileError` "<path> cannot be <action>: <cause>".

    A `UserError` raised inside passes unchanged, and so does what Python raises for a wrong call of
    a file's method.
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
    """Text that a terminal shows as it is: control characters, and bytes of a file name that are no
    text, become escape sequences such as "\\x1b". Line ends stay."""
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
