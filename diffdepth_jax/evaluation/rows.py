"""What is kept of each image of an evaluation, in memory and while it is not finished on disk."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffdepth_jax.evaluation.scoring import Score

_PREFIX = "per_image.partial"


@dataclasses.dataclass(frozen=True)
class Row:
    """One image's part of a result.

    Attributes:
      index: its place among the samples.
      id, condition: as the sample names them.
      scores, baseline: by the protocol's name.
      error: why the image could not be read; it then has no scores.
    """

    index: int
    id: str
    condition: str = ""
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    baseline: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    error: str | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Row":
        """Reads `to_json`; numbers come back exactly."""
        values: dict[str, Any] = json.loads(text)
        for name in ("scores", "baseline"):
            values[name] = {key: Score(**score) for key, score in values[name].items()}
        return cls(**values)


class Journal:
    """Rows of an evaluation that may be interrupted or shared by several processes.

    Every process appends to a file of its own, a line a row; all of them read each other's. The
    files' names carry a fingerprint of everything that the rows depend on, so that other rows in
    the same directory are left alone.

    Args:
      directory: of the results; must exist.
      fingerprint: letters and digits.
      shard: (index, count) of this process.
    """

    def __init__(self, directory: Path, fingerprint: str, shard: tuple[int, int] = (0, 1)):
        self._directory = directory
        self._prefix = f"{_PREFIX}-{fingerprint}-"
        self._path = directory / f"{self._prefix}{shard[0]}of{shard[1]}.jsonl"

    def read(self) -> dict[int, Row]:
        """The finished rows by their index."""
        rows = {}
        for path in self._paths():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):  # The process ended within its last line.
                    continue
                try:
                    row = Row.from_json(line)
                # After a power failure there may be anything: such an image is done again.
                except (ValueError, TypeError, KeyError):
                    continue
                rows[row.index] = row
        return rows

    def __enter__(self) -> "Journal":
        if self._path.exists():
            whole = self._path.read_bytes().rpartition(b"\n")
            os.truncate(self._path, len(whole[0]) + len(whole[1]))
        self._file = open(self._path, "a")
        return self

    def append(self, row: Row) -> None:
        self._file.write(row.to_json() + "\n")
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()

    def remove(self) -> None:
        """Removes the files of all processes."""
        for path in self._paths():
            path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob(f"{self._prefix}*.jsonl"))
