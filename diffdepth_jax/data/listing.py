"""A data set as a list of frames and their files, checked before any is read."""

import dataclasses
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from diffdepth_jax.data import io
from diffdepth_jax.data.sources import Sample
from diffdepth_jax.errors import DataError, MissingFileError, naming_file

UNKNOWN = np.full((3, 3), np.nan, np.float32)  # intrinsics of frames without calibration


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame as a set of files. Paths are strings, as data sets have up to 200,000 of them.

    Attributes:
        id: unique within the source, usable as a file name.
        image: the image file.
        depth: the file that depth is read or computed from; None for an image without depth, whose
            depth is then 0 (unmeasured) everywhere.
        calibration: the calibration file; None if the camera is known otherwise or unknown.
        intrinsics: float32 [3 3] if many frames share them; None to read them from a file.
        condition: weather and light.
        categories: the file with its material classes as in Booster; None if there is none.
        others: other files that the frame needs.
    """

    id: str
    image: str
    depth: str | None = None
    calibration: str | None = None
    intrinsics: np.ndarray | None = None
    condition: str = "day-clear"
    categories: str | None = None
    others: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        files = (self.image, self.depth, self.calibration, self.categories, *self.others)
        return tuple(file for file in files if file is not None)


T = TypeVar("T")


def known(value: T | None) -> T:
    """Returns a value that is never None here, although its type allows None."""
    if value is None:
        raise TypeError("a required value is None")
    return value


# (frame, (height, width) of its image) -> depth float32 [h w] and intrinsics float32 [3 3]; the
# frame's class is up to the source.
Reader = Callable[[Any, tuple[int, int]], tuple[np.ndarray, np.ndarray]]


class FrameSource:
    """Random access to listed frames (`sources.Source`)."""

    def __init__(
        self,
        frames: Sequence[Frame],
        read: Reader,
        *,
        where: str,
        remedy: str,
        check_files: bool = True,
        num_without_depth: int = 0,
    ):
        """
        Args:
            frames: the frames in order; not copied.
            read: returns depth and intrinsics of a frame.
            where: what was listed, for errors, for example "split 'val' of data/cityscapes".
            remedy: what to do about missing files, for errors.
            check_files: check now that every file exists; otherwise reading a missing file fails.
            num_without_depth: number of frames left out because they have no depth.

        Raises:
            DataError: if there are no frames, or two have the same id.
            MissingFileError: if files are missing; gives their number and the first one.
        """
        if not frames:
            raise DataError(f"no frames in {where}: {remedy}")
        require_unique((frame.id for frame in frames), where)
        if check_files:
            require_files((file for frame in frames for file in frame.files), where, remedy)
        self.frames = tuple(frames)
        self.num_without_depth = num_without_depth
        self._read = read

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        image = io.read_image(frame.image)
        depth, intrinsics = self._read(frame, image.shape[:2])
        io.check_sample(image, depth, frame.image, frame.depth)
        sample = Sample(
            image=image,
            depth=depth,
            intrinsics=intrinsics,
            id=frame.id,
            condition=frame.condition,
        )
        return sample if frame.categories is None else with_materials(sample, frame.categories)


def with_materials(sample: Sample, path: str | Path) -> Sample:
    """Adds `categories` and `tom_mask` to a sample; errors as in `io.read_categories`."""
    categories = io.read_categories(path, sample["depth"].shape)
    return {**sample, "categories": categories, "tom_mask": categories >= 2}


def unmeasured(size: tuple[int, int]) -> np.ndarray:
    """Depth of an image without depth: 0 everywhere (unmeasured)."""
    return np.zeros(size, np.float32)


def file_names(folder: str | Path, *suffixes: str) -> list[str]:
    """Sorted names in a folder with one of the suffixes, without hidden files."""
    with naming_file(folder, "listed"):
        names = os.listdir(folder)
    return sorted(name for name in names if name.endswith(suffixes) and not name.startswith("."))


def folder_names(folder: Path) -> list[str]:
    """Sorted names of a folder's subfolders."""
    with naming_file(folder, "listed"):
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def require_folder(path: Path, remedy: str) -> Path:
    """Returns the folder `path` after checking it.

    Raises:
        FileError: if it does not exist (`MissingFileError`) or cannot be accessed.
    """
    with naming_file(path, "opened"):
        if not path.is_dir():
            raise MissingFileError(f"{path} does not exist: {remedy}")
    return path


def require_split(split: str, names: Iterable[str], *, lists: bool = False) -> None:
    """Rejects a split that is not one of `names` nor, with `lists`, the path of a `.txt` file.

    Raises:
        ValueError: lists the valid ones.
    """
    names = tuple(names)
    if split in names or (lists and split.endswith(".txt")):
        return
    path = " or the path of a list file ending in .txt" if lists else ""
    raise ValueError(f"split is {split!r}; it must be one of {', '.join(names)}{path}")


def require_conditions(conditions: Iterable[str], known: Iterable[str]) -> None:
    """Rejects conditions that a data set does not have.

    Raises:
        ValueError: lists the valid ones.
    """
    known = tuple(known)
    for condition in conditions:
        if condition not in known:
            raise ValueError(f"conditions has {condition!r}; choose from {', '.join(known)}")


def require_unique(ids: Iterable[str], where: str) -> None:
    """Rejects duplicate ids, as output for one frame would overwrite the other's.

    Raises:
        DataError: names the first duplicate.
    """
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DataError(f"frame {name} occurs twice in {where}: list each frame once")
        seen.add(name)


def require_files(paths: Iterable[str], where: str, remedy: str) -> None:
    """Raises an error if files are missing.

    Raises:
        MissingFileError: says how many are missing, and the first.
    """
    paths = list(paths)
    if missing := io.missing(map(Path, paths)):
        raise MissingFileError(
            f"{len(missing)} of {len(paths)} files of {where} are missing, starting with "
            f"{missing[0]}: {remedy}"
        )


def read_lines(path: Path, otherwise: str) -> list[tuple[int, str]]:
    """The non-empty lines of a list file, with line numbers from 1.

    Args:
        path: the file.
        otherwise: what else the split may be, for the error.

    Raises:
        MissingFileError: if there is no such file.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist: split must name a list file or {otherwise}")
    lines = enumerate(io.read_text(path).splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def matches(pattern: Path) -> tuple[Path, list[Path]]:
    """A glob pattern's base folder, and its matches; `**` descends into folders.

    Brackets and other special characters in an existing folder's name are taken literally.
    """
    folder = next(parent for parent in pattern.parents if parent.is_dir())
    escaped = os.path.join(glob.escape(str(folder)), pattern.relative_to(folder))
    return folder, [Path(name) for name in glob.glob(escaped, recursive=True)]


def below(folder: Path, pattern: str) -> set[Path]:
    """The matches of a pattern below a folder, like `Path.glob`; but `**` also descends into linked
    folders, as `*` does.

    Links that lead back to a folder on the way to them, or to one inside or around it, are not
    followed: its files are found without them, and following could go on forever.
    """
    parts = re.match(r"(|.*?/)\*\*/(.+)", pattern)
    if parts is None:
        return set(folder.glob(pattern))
    before, after = parts.groups()
    starts = folder.glob(before) if before else (folder,)
    folders = (place for start in starts if start.is_dir() for place in _folders(start))
    return {path for place in folders for path in below(place, after)}


def _folders(start: Path) -> Iterator[Path]:
    """A folder and all those below it, also linked ones; unreadable ones are left out, as
    `Path.glob` does."""

    def fail(error: OSError) -> None:
        if not isinstance(error, PermissionError):
            raise error

    # The real folders on the way to each place; only links change them.
    ways: dict[str, tuple[Path, ...]] = {str(start): (start.resolve(),)}
    for place, names, _ in os.walk(start, onerror=fail, followlinks=True):
        yield Path(place)
        way = ways.pop(place)
        for name in list(names):
            path = os.path.join(place, name)
            target = (Path(path).resolve(),) if os.path.islink(path) else ()
            if any(_nested(one, other) for one in target for other in way):
                names.remove(name)
            else:
                ways[path] = (*way, *target)


def _nested(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)
