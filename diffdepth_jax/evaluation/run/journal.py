"""Stores rows of an unfinished evaluation on disk."""

import contextlib
import os
from pathlib import Path

from diffdepth_jax import run_files
from diffdepth_jax.errors import naming_file
from diffdepth_jax.evaluation.report.rows import Row


class Journal:
    """Rows of an evaluation that may be interrupted or shared by several processes.

    Every process appends to its own file, one row per line, and reads those of the others. File
    names contain a fingerprint of everything that the rows depend on, so that other rows in the
    same directory are ignored.

    Args:
        directory: directory of the results; must exist.
        fingerprint: consists of letters and digits.
        shard: (index, count) of this process.

    Attributes:
        path: this process's file.
    """

    def __init__(self, directory: Path, fingerprint: str, shard: tuple[int, int] = (0, 1)):
        self._directory = directory
        self._prefix = f"{run_files.PER_IMAGE_PARTIAL}-{fingerprint}-"
        self.path = directory / f"{self._prefix}{shard[0]}of{shard[1]}.jsonl"

    def read(self) -> dict[int, Row]:
        """The finished rows by index."""
        rows = {}
        for path in self._paths():
            with naming_file(path, "read"):
                lines = path.read_bytes().splitlines(keepends=True)
            for line in lines:
                if not line.endswith(b"\n"):  # the process was stopped while writing this line
                    continue
                try:
                    row = Row.from_json(line)
                # After a power failure, a line may contain anything: score that image again.
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    continue
                rows[row.index] = row
        return rows

    def __enter__(self) -> "Journal":
        with naming_file(self.path, "written"):
            if self.path.exists():
                whole = self.path.read_bytes().rpartition(b"\n")
                os.truncate(self.path, len(whole[0]) + len(whole[1]))
            self._file = open(self.path, "a")
        return self

    def append(self, row: Row) -> None:
        with naming_file(self.path, "written"):
            self._file.write(row.to_json() + "\n")
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        with naming_file(self.path, "written"):
            self._file.close()
        with contextlib.suppress(FileNotFoundError):  # another process has already merged them
            if not self.path.stat().st_size:
                self.path.unlink()

    def remove(self) -> None:
        """Removes the files of all processes."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob(f"{self._prefix}*.jsonl"))
