"""A run's scalars: progress bar, `metrics.csv` and TensorBoard."""

import collections
import contextlib
import csv
import dataclasses
import io
import math
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import jax
from tqdm import tqdm

from diffdepth_jax import atomic, run_files
from diffdepth_jax.errors import ConfigError, DataError, DivergedError, naming_file
from diffdepth_jax.training.events import EventWriter

_FINITE = ("loss", "gradient_norm")  # training stops if they are not
_LAG = 2  # steps between adding scalars and waiting for them
_PATIENCE = 50  # steps without a usable label that end a run; a few may occur by chance
_NOT_SHOWN = ("learning_rate", "gradient_norm")  # the progress bar only shows losses


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Every `every_steps` steps, a row is written with the means since the previous row."""

    every_steps: int = 100

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"every_steps is {self.every_steps}; it must be at least 1")


class RunLog:
    """Collects every step's scalars and regularly writes their means; a context manager.

    Scalars are fetched from the device a few steps after being added, so that the device always has
    work queued, but no more than that many steps.

    Rows and events after `first_step`, left by a run that died after its last checkpoint, are
    dropped, because their steps will be repeated. `state` is what `get_state` returned at that
    checkpoint, so that the next row equals that of an uninterrupted run (except for steps per
    second). Without `writes`, nothing is written or shown, but errors are still raised: only one of
    several processes writes.

    Raises:
        FileError: from any method, if a file cannot be written; names it.
        DataError: if an existing `metrics.csv` is damaged.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        first_step: int,
        num_steps: int,
        every_steps: int,
        state: Mapping[str, Any] | None = None,
        writes: bool = True,
    ) -> None:
        self._path = workdir / run_files.SCALARS
        self._writes = writes
        self._every_steps = every_steps
        self._num_steps = num_steps
        self._waiting: collections.deque = collections.deque()
        state = state or {"sums": {}, "count": 0}
        self._sums: dict[str, float] = dict(state["sums"])
        self._count: int = state["count"]
        self._has_labels = first_step > 0
        self._timed = 0  # steps since `_time`
        self._time: float | None = None  # set after the first step, which compiles
        self._columns = _drop_rows_after(self._path, first_step) if writes else []
        with contextlib.ExitStack() as stack:
            if writes:
                self._events = stack.enter_context(
                    EventWriter(workdir / run_files.TENSORBOARD, first_step)
                )
                with naming_file(self._path, "written"):
                    self._file = self._path.open("a", newline="")
            stack.pop_all()
        self._bar = tqdm(
            disable=not writes,
            total=num_steps,
            initial=first_step,
            desc="compile",
            unit=" steps",
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,  # fewer lines for a log file
        )

    def add(self, step: int, scalars: Mapping[str, Any], ids: Collection[str] = ()) -> None:
        """Adds the scalars of the update that ends at `step` (the first is 1) on images `ids`.

        Raises:
            DivergedError: if the loss or gradient norm of this or an earlier step is not finite;
                names the step and the images.
            DataError: if no image in the first `_PATIENCE` steps, or in a shorter run, had a usable
                label.
        """
        if self._time is None:
            self._time = time.perf_counter()
            self._bar.set_description("train", refresh=False)
        self._waiting.append((step, scalars, ids))
        while len(self._waiting) > _LAG:
            self._take()

    def flush(self) -> None:
        """Waits for all scalars added so far; raises the errors of `add`."""
        while self._waiting:
            self._take()

    def get_state(self) -> dict[str, Any]:
        """The sums for the next row so far, JSON-compatible; call `flush` first."""
        # A copy, as the checkpoint is written while more steps are added.
        return {"sums": dict(self._sums), "count": self._count}

    def _take(self) -> None:
        step, scalars, ids = self._waiting.popleft()
        values = {name: float(value) for name, value in jax.device_get(scalars).items()}
        for name in _FINITE:
            if not math.isfinite(values.get(name, 0.0)):
                images = f" (images {', '.join(map(str, ids))})" if len(ids) else ""
                raise DivergedError(f"{name} is {values[name]} in step {step}{images}")
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._has_labels |= (
            values.get("flat_labels", 0.0) < 1 and values.get("valid_fraction", 1.0) > 0
        )
        self._count += 1
        self._timed += 1
        self._bar.update()
        if step % self._every_steps == 0 or step == self._num_steps:
            self._write(step)

    def _write(self, step: int) -> None:
        if not self._has_labels and (step >= _PATIENCE or step == self._num_steps):
            raise DataError(
                f"no label in the first {step} steps is usable: each is constant or has no valid "
                "pixel. Check the labels of the training data, or the teacher's predictions for "
                "the clean images"
            )
        means = {name: total / self._count for name, total in self._sums.items()}
        now = time.perf_counter()
        seconds = now - cast(float, self._time)  # set by the first step
        row = {"step": step, **means, "steps_per_second": self._timed / seconds}
        self._sums, self._count, self._timed, self._time = {}, 0, 0, now
        if not self._writes:
            return
        new = not self._columns
        self._columns = self._columns or list(row)
        if set(row) != set(self._columns):
            raise ConfigError(
                f"{self._path} has columns {self._columns}, but this run logs {list(row)}: use "
                "another workdir"
            )
        with naming_file(self._path, "written"):
            writer = csv.writer(self._file)
            if new:
                writer.writerow(self._columns)
            writer.writerow(
                [step, *(f"{row[name]:.7g}" for name in self._columns if name != "step")]
            )
            self._file.flush()
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(f"train/{name}", value, step)
        shown = {name: f"{mean:.3g}" for name, mean in means.items() if name not in _NOT_SHOWN}
        self._bar.set_postfix(shown, refresh=False)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        if not self._writes:
            return
        with contextlib.suppress(*[OSError] if error else []), naming_file(self._path, "written"):
            self._file.close()  # Tries again to write what could not be written.
        self._events.__exit__(kind, error, traceback)


def read_csv(path: Path) -> dict[str, list[float]]:
    """The columns of a run's `metrics.csv`.

    Raises:
        FileError, DataError: if it cannot be read or is damaged; names the remedy.
    """
    header, rows = _read(path)
    if not rows:
        return {}
    return {name: [float(row[index]) for row in rows] for index, name in enumerate(header)}


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of numbers, without a last row that a crash truncated."""
    with naming_file(path, "read"):
        content = path.read_bytes()
    try:
        header, *rows = list(csv.reader(io.StringIO(content.decode(), newline=""))) or [[]]
        rows = [row for row in rows if len(row) == len(header)]
        for row in rows:
            for name, value in zip(header, row, strict=True):
                int(value) if name == "step" else float(value)
        if rows and header[0] != "step":
            raise ValueError(f"its first column is {header[0]!r}, not 'step'")
    except (ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is damaged ({error}): repair it, or remove it to start a new log"
        ) from error
    return header, rows


def _drop_rows_after(path: Path, step: int) -> list[str]:
    """Rewrites a CSV without rows after `step` or truncated by a crash; returns its header."""
    if not path.exists():
        return []
    header, rows = _read(path)
    kept = [row for row in rows if int(row[0]) <= step]
    if not kept:
        with naming_file(path, "written"):
            path.unlink()
        return []
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *kept])
    atomic.write_text(path, text.getvalue())
    return header
