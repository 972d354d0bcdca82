"""Files that are whole or absent, whatever interrupts their writing."""

import contextlib
import io
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from diffdepth_jax.errors import FileError, MissingFileError, naming_file

_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)\.part", re.DOTALL)


def write(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file under a temporary name in the same folder and renames it.

    The permissions are those of any new file (the umask).

    Args:
        path: in a directory that exists; an existing file stays until the new one is complete.
        write: is called with the open binary file.

    Raises:
        FileError: if the file cannot be written; names it and the cause (`MissingFileError`: its
            directory does not exist). After that, or whatever `write` raises, `path` is as it was
            and the temporary file is gone.
    """
    with replacing(path) as temporary, _Writer(io.FileIO(temporary, "w")) as file:
        write(file)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name in the same folder, for libraries that write a file by its name.

    The file is renamed when the block ends. Otherwise as `write`.

    Raises:
        FileError: as `write`, also for an OSError in the block.
    """
    path = Path(path)
    temporary = temporary_path(path)
    with naming_file(path, "written"):
        _require_folder(path)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # The first error matters more.
                temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text; see `write`.

    Bytes of file names that are no UTF-8 (Python's lone surrogates) are written as `\\udcff`.
    """
    write(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_directory(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Fills a directory under a temporary name and renames it, so that it is whole or absent.

    Args:
        path: need not exist, but its folder must; if it does, it must be empty.
        write: is called with the temporary directory.

    Raises:
        FileError: if it cannot be written, or holds something (`MissingFileError`: its folder does
            not exist). After that, or whatever `write` raises, `path` is as it was.
    """
    path = Path(path)
    temporary = temporary_path(path)
    with naming_file(path, "written"):
        _require_folder(path)
        try:
            temporary.mkdir()
            write(temporary)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def replacing_directory(
    path: str | os.PathLike[str], replaceable: Callable[[str], bool]
) -> Iterator[Path]:
    """A temporary directory, which takes the place of `path` when the block ends.

    Args:
        path: need not exist, but its folder must.
        replaceable: whether an entry of that name may be lost.

    Raises:
        FileError: if it holds anything else, before the block; or as `write_directory`.
    """
    path = Path(path)
    temporary, old = temporary_path(path), temporary_path(path.with_name(f"{path.name}.old"))
    with naming_file(path, "written"):
        _require_folder(path)
        entries = sorted(os.listdir(path)) if path.exists() else []
        if others := [name for name in entries if not replaceable(name)]:
            raise FileError(
                f"{path} holds {others[0]}, which was not written by an earlier run: move it away, "
                "or choose another output directory"
            )
        try:
            temporary.mkdir()
            yield temporary
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        finally:
            for folder in (temporary, old):
                shutil.rmtree(folder, ignore_errors=True)


def _require_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise MissingFileError(f"{path} cannot be written: there is no folder {path.parent}")


@contextlib.contextmanager
def directory(path: Path) -> Iterator[None]:
    """Creates a directory for the work inside; new directories that are still empty are removed.

    Raises:
        FileError: if it cannot be made or written.
    """
    with naming_file(path, "written"):
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        with naming_file(path, "written"):
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # It holds something.
                folder.rmdir()


def remove_leftovers(directory: str | os.PathLike[str], *, recursive: bool = False) -> list[Path]:
    """Removes temporary files and directories left by killed processes of this machine.

    To be called before writing into a directory. Files of running processes stay, as do those of
    other machines, which cannot be checked, and of a process whose number has been reused. Two
    processes of one machine that do not see each other (containers that share its name) can mistake
    a running one for dead: its `write` of that file then fails, and nothing else is lost.

    Args:
        directory: need not exist.
        recursive: look into the directories below it as well.

    Returns:
        What was removed; files that may not be removed stay, silently.
    """
    removed = []
    for folder, folders, names in os.walk(directory):
        for name in (*names, *folders):
            match = _TEMPORARY.fullmatch(name)
            if match and match[1] == _machine() and not _running(int(match[2])):
                with contextlib.suppress(OSError):
                    path = Path(folder, name)
                    shutil.rmtree(path) if name in folders else path.unlink()
                    removed.append(path)
        if not recursive:
            folders.clear()
    return removed


class _Writer(io.BufferedWriter):
    """A file that hides its descriptor.

    Given a descriptor, NumPy and Pillow bypass Python when they write, and then report a full disk
    in their own words ("1024 requested and 0 written", "encoder error -2").
    """

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def temporary_path(path: Path) -> Path:
    """`.NAME.MACHINE-PROCESS.part` next to the file; NAME is shortened if that is too long.

    Hidden and with another suffix, so that no search for results finds a half-written file.
    """
    ending = f".{_machine()}-{os.getpid()}.part"
    try:
        limit = os.pathconf(path.parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        limit = 255  # bytes
    name = os.fsencode(path.name)
    if 1 + len(name) + len(ending) > limit:
        ending = f".{zlib.crc32(name):08x}{ending}"
        name = name[: limit - 1 - len(ending)]
    return path.with_name(f".{os.fsdecode(name)}{ending}")


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True
