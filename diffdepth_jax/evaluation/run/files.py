"""Matches saved depth maps with their ground truth."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from diffdepth_jax.data import listing
from diffdepth_jax.errors import DataError, MissingFileError, naming_file

_SUFFIXES = (".npy", ".png")  # the first is preferred
_SHOWN = 10  # names listed in an error


@dataclasses.dataclass(frozen=True)
class DepthFiles:
    """The depth maps in a folder or matching a pattern.

    Attributes:
        source: the folder or pattern.
        paths: files by their path below the folder, with `/` and without suffix.
        unusable: reasons why files cannot be opened, such as circular links.
    """

    source: str
    paths: Mapping[str, Path]
    unusable: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def kinds(self) -> str:
        return "+".join(sorted({_kind(path) for path in self.paths.values()}))


def find(source: str | os.PathLike) -> DepthFiles:
    """The depth files in a folder and its subfolders, or those matching a pattern.

    If a map exists as both `.npy` and `.png`, as written by `predict.py`, the `.npy` is used.

    Raises:
        FileError: if there are none (`MissingFileError`), or the folder cannot be listed.
    """
    path = Path(source).expanduser()
    with naming_file(path, "read"):
        if path.is_dir():
            folder, found = path, list(_walk(path))
        elif os.path.lexists(path):
            folder, found = path.parent, [path]
        else:
            folder, found = listing.matches(path)
            if not found:
                raise MissingFileError(
                    f"{source} is neither a folder nor a pattern that matches files"
                )
    paths: dict[str, Path] = {}
    unusable: dict[str, str] = {}
    found = [path for path in found if path.suffix.lower() in _SUFFIXES]
    for path in sorted(found, key=lambda path: (_SUFFIXES.index(path.suffix.lower()), path)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            path.stat()
        except OSError as error:
            unusable[name] = f"{path} cannot be read: {error.strerror}"
            continue
        if path.is_file():
            paths.setdefault(name, path)
    unusable = {name: cause for name, cause in unusable.items() if name not in paths}
    if not paths:
        raise MissingFileError(f"{source} and its subfolders have no .png and no .npy files")
    return DepthFiles(str(source), paths, unusable)


def match(wanted: Sequence[Sequence[str]], found: DepthFiles) -> list[str]:
    """The name of the file for each required map.

    A file's path may have fewer or more folders than the name: the file that shares the most
    trailing parts is used. Parts may also be joined by `_`, as in frame ids.

    Args:
        wanted: possible names of each map, with / between parts, best first.
        found: the files; unusable ones match too.

    Raises:
        DataError: if a map has no file or several equally good ones, or shares one with another
            map.
    """
    index = _Index([*found.paths, *found.unusable])
    names: list[str] = []
    missing: list[str] = []
    taken: dict[str, str] = {}
    for candidates in wanted:
        fitting = next(filter(None, map(index.fitting, candidates)), [])
        if not fitting:
            missing.append(candidates[0])
            continue
        if len(fitting) > 1:
            raise DataError(
                f"{candidates[0]} matches several files in {found.source} equally well: "
                f"{_list(fitting)}. Keep the folders of the images, or select files with a pattern"
            )
        name = fitting[0]
        if name in taken:
            raise DataError(
                f"{name} in {found.source} matches both {taken[name]} and {candidates[0]}: keep "
                "the folders of the images"
            )
        taken[name] = candidates[0]
        names.append(name)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(wanted)} have no prediction with their name in "
            f"{found.source}: {_list(missing)}; it has {_list(sorted(found.paths), 3)}"
        )
    return names


class _Index:
    """File names indexed by every sequence of their trailing parts."""

    def __init__(self, names: Iterable[str]):
        self._names = set(names)
        self._by_tail: dict[str, list[str]] = {}
        for name in self._names:
            for tail in _tails(name):
                self._by_tail.setdefault(tail, []).append(name)

    def fitting(self, name: str) -> list[str]:
        """The files that share the most trailing parts with a name, sorted."""
        if name in self._names:
            return [name]
        for tail in _tails(name):
            if tail in self._by_tail:
                return sorted(self._by_tail[tail])
        return []


def _tails(name: str) -> Iterator[str]:
    """Suffixes of a name: all parts joined, all but the first, ..., only the last."""
    parts = PurePosixPath(name).parts
    for start in range(len(parts)):
        yield "_".join(parts[start:])


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        with naming_file(error.filename or folder, "read"):
            raise error

    seen = {folder.resolve()}
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        new = {name: Path(place, name).resolve() for name in folders}
        folders[:] = [
            name for name, path in new.items() if path not in seen
        ]  # links may form a cycle
        seen.update(new.values())
        yield from (Path(place, name) for name in names)


def _kind(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _list(names: Sequence[str], shown: int = _SHOWN) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
