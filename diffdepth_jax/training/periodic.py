"""Periodic evaluations during training, and the best checkpoint.

WORKDIR/evaluations.csv          a row for each evaluation: step, protocol (the first if there are
                                 several; it determines the best), num_images, the metrics, and the
                                 baseline's as baseline_<metric>
        best.json                step, metric and value of the best checkpoint
        tensorboard/evaluation/  the same scalars, and predictions.png
        metrics.json, per_image.csv, predictions.png   from the latest evaluation
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from diffdepth_jax import atomic, run_files
from diffdepth_jax.errors import DataError, naming_file
from diffdepth_jax.evaluation import metrics
from diffdepth_jax.evaluation.report import pictures
from diffdepth_jax.evaluation.run.checkpoint import score_model, settings
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.processes import Processes
from diffdepth_jax.training.events import EventWriter
from diffdepth_jax.training.experiment import Experiment


class Evaluations:
    """Evaluates regularly and records the results; a context manager.

    Rows after `first_step`, left by a run that died after its last checkpoint, are dropped.
    Evaluating a step again replaces its row.

    Raises:
        DataError: if an existing `evaluations.csv` is damaged.
        FileError: from any method, if a file cannot be read or written; names it.
    """

    def __init__(
        self, exp: Experiment, workdir: Path, first_step: int, processes: Processes | None = None
    ) -> None:
        self._processes = processes or Processes()
        self._exp = exp
        self._workdir = workdir
        self._first_step = first_step
        self._events: EventWriter | None = None
        self._protocol = exp.evaluation.build().name
        self._rows = self._processes.from_first(self._kept_rows)

    def _kept_rows(self) -> list[dict[str, str]]:
        """The rows up to the first step, after removing all others from the file."""
        file = self._workdir / run_files.EVALUATIONS
        rows = _read(file, self._exp.checkpoint.best_metric)
        self._rows = [row for row in rows if int(row["step"]) <= self._first_step]
        if file.exists():
            self._write()
        return self._rows

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after `step`; False at the end, as the result is evaluated anyway."""
        every = self._exp.evaluation.every_steps
        if not every:
            return False
        return step > 0 and step % every == 0 and step < self._exp.num_steps

    def has(self, step: int) -> bool:
        """Whether the results of `step` exist."""
        return self._processes.from_first(
            lambda: any(int(row["step"]) == step for row in self._of_protocol())
        )

    def best_step(self) -> int | None:
        """The best evaluated step by `checkpoint.best_metric`; the earliest if there are ties.

        Only steps whose checkpoint still exists count. All processes call this together and get the
        same result.
        """
        return self._processes.from_first(self._best_step)

    def _best_step(self) -> int | None:
        name = self._exp.checkpoint.best_metric
        if name is None:
            return None
        kept = self._workdir / run_files.CHECKPOINTS
        rows = [
            row for row in self._of_protocol() if row.get(name) and (kept / row["step"]).is_dir()
        ]
        if not rows:
            return None
        best = max if name in metrics.LARGER_IS_BETTER else min
        return int(best(rows, key=lambda row: float(row[name]))["step"])

    def run(self, step: int, model: DepthModel) -> dict[str, Any]:
        """Evaluates the model at `step` and writes the files listed above.

        Several processes divide the images; the first writes.

        Returns:
            The content of `metrics.json`.
        """
        exp = self._exp
        results = score_model(
            model, exp.data, exp.evaluation, self._workdir, processes=self._processes
        )
        result = results[self._protocol]
        with self._processes.agreed():
            if self._processes.is_first:
                self._note(step, model, result)
        return result

    def _note(self, step: int, model: DepthModel, result: Mapping[str, Any]) -> None:
        """Writes the results of `run`."""
        exp, steps = self._exp, self._exp.evaluation.num_inference_steps
        protocols, *_ = settings(model, exp.evaluation)
        pictures.save_predictions(
            self._workdir,
            protocols[0],
            lambda images: list(model.predict(images, num_inference_steps=steps)),
            exp.data,
        )
        scalars = result["metrics"] | {
            f"baseline_{name}": value for name, value in result["baseline"].items()
        }
        row = {"step": step, "protocol": result["protocol"], "num_images": result["num_images"]}
        key = (step, result["protocol"])
        self._rows = [row for row in self._rows if (int(row["step"]), row["protocol"]) != key]
        self._rows.append({name: str(value) for name, value in (row | scalars).items()})
        self._write()
        if self._events is None:
            place = self._workdir / run_files.TENSORBOARD_EVALUATION
            self._events = EventWriter(place, self._first_step)
        for name, value in scalars.items():
            self._events.add_scalar(f"evaluation/{name}", float(value), step)
        with Image.open(self._workdir / run_files.PREDICTIONS) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._events.add_image("predictions", pixels, step)

    def __enter__(self) -> "Evaluations":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._events is not None:
            self._events.__exit__(kind, error, traceback)

    def _of_protocol(self) -> list[dict[str, str]]:
        return [row for row in self._rows if row["protocol"] == self._protocol]

    def _write(self) -> None:
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self._rows)
        atomic.write_text(self._workdir / run_files.EVALUATIONS, text.getvalue())
        best, name = self._best_step(), self._exp.checkpoint.best_metric
        if best is None or name is None:
            with naming_file(self._workdir / run_files.BEST, "removed"):
                (self._workdir / run_files.BEST).unlink(missing_ok=True)
        else:
            row = next(row for row in self._of_protocol() if int(row["step"]) == best)
            note = {"step": best, "metric": name, "value": float(row[name])}
            atomic.write_text(self._workdir / run_files.BEST, json.dumps(note) + "\n")


def _read(path: Path, metric: str | None) -> list[dict[str, str]]:
    """The rows, after checking step, protocol and the values of `metric`."""
    if not path.exists():
        return []
    with naming_file(path, "read"):
        content = path.read_bytes()
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
        for row in rows:
            int(row["step"])
            float(row.get(metric) or 0)  # a protocol may lack it
            if None in row or None in row.values() or not row["protocol"]:
                raise ValueError(f"the row of step {row['step']} has a different number of columns")
    except (LookupError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}): repair it, or remove it to "
            "start a new one"
        ) from error
    return rows
