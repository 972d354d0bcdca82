"""Writes files atomically: they are complete or absent, even if writing is interrupted."""

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

    Permissions follow the umask, as for any new file.

    Args:
        path: its directory must exist; an existing file is kept until the new one is complete.
        write: called with the open binary file.

    Raises:
        FileError: if the file cannot be written; names it and the cause (`MissingFileError` if its
            directory does not exist). After any error, including those of `write`, `path` is
            unchanged and the temporary file is removed.
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
            with contextlib.suppress(OSError):  # the first error matters more
                temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text; see `write`.

    Bytes of file names that are not UTF-8 (lone surrogates in Python) are written as `\\udcff`.
    """
    write(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_directory(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Fills a directory under a temporary name and renames it, so that it is complete or absent.

    Args:
        path: its parent folder must exist; `path` itself must be absent or empty.
        write: called with the temporary directory.

    Raises:
        FileError: if it cannot be written or is not empty (`MissingFileError` if its parent does
            not exist). After any error, including those of `write`, `path` is unchanged.
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
    """A temporary directory that replaces `path` when the block ends.

    Args:
        path: need not exist, but its folder must.
        replaceable: whether an existing entry of that name may be deleted.

    Raises:
        FileError: if `path` contains anything else (raised before the block), or as in
            `write_directory`.
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
    """Creates a directory for the context; new directories that stay empty are removed afterwards.

    Raises:
        FileError: if it cannot be created or is not writable.
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
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def remove_leftovers(directory: str | os.PathLike[str], *, recursive: bool = False) -> list[Path]:
    """Removes temporary files and directories left by killed processes on this machine.

    Call it before writing to a directory. Files of running processes are kept, as are those of
    other machines, which cannot be checked, and those whose process id has been reused. Processes
    on one machine that do not see each other (containers with the same host name) may mistake a
    running one for dead: its `write` of that file then fails, but nothing else is lost.

    Args:
        directory: need not exist.
        recursive: also search subdirectories.

    Returns:
        The removed paths; files that cannot be removed are silently kept.
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
    """A file object without a file descriptor.

    With a descriptor, NumPy and Pillow write without Python, and report a full disk as "1024
    requested and 0 written" or "encoder error -2".
    """

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def temporary_path(path: Path) -> Path:
    """`.NAME.MACHINE-PROCESS.part` next to the file, with NAME shortened if necessary.

    Hidden and with a different suffix, so that searches for results do not find partial files.
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
    except PermissionError:  # a process of another user
        return True
    return True
