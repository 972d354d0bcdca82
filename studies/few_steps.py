"""Few denoising steps: one model for 1, 2 and 4 steps against the published 20.

    taskset -c 0 python studies/few_steps.py --workdir=runs/few_steps [--seeds=3]

The network of configs/demo.py is trained on exact depth of the committed sample, as in
`studies/self_diffusion.py`, whose runs this can share (--workdir=runs/self_diffusion):

- with 20 steps, as published, and then run with fewer: unchanged ("just change the number"), and
  with its decoder's batch statistics computed again for that number;
- with `configs/few_steps_demo.py`, which draws 1, 2 or 4 steps in every update: at equal cost, with
  as many more updates as cheaper updates allow, and with equal updates (one seed);
- with 20 steps spaced as for few ("trailing"), and two models made from that one: distilled
  (`configs/few_steps_consistency.py`), or trained further with 1, 2 or 4 steps (one seed).

All are scored on the sample's 60 other streets, without flip_tta. Existing results are neither
trained nor scored again. Writes `few_steps.csv` and `few_steps.md` in the workdir.
"""

import statistics
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import few_steps_runs as runs
import self_diffusion_scores as scores
from reporting import markdown
from self_diffusion_report import Row, values, write_csv
from self_diffusion_runs import carry_out, command_line
from self_diffusion_scores import Setting

from diffdepth_jax import atomic, inference

FILE = "few_steps_scores.json"
COLUMNS = (
    *("method", "seed", "updates", "steps", "recalibrated", *scores.METRICS, "boundary_f1"),
    *("abs_rel_to_20", "cpu_seconds", "predict_ms", "config", "changes", "commit", "device"),
)
WAYS = {
    "self_20": "trained at 20",
    "few": "drawn from 1, 2, 4",
    "few_500": "drawn from 1, 2, 4, equal updates",
    "trailing_20": "trained at 20, trailing",
    "distilled": "from that, by consistency distillation",
    "tuned": "that, trained further with 1, 2, 4",
}


def main() -> None:
    flags = command_line(__doc__.splitlines()[0], only="few-dense-0,self_20-dense-1")
    rows = carry_out(runs.planned(flags.seeds, flags.workdir), flags, score)
    rows = [row | {"abs_rel_to_20": ratio_to_20(row, rows)} for row in rows]
    write_csv(flags.workdir / "few_steps.csv", rows, COLUMNS)
    table = tables(rows)
    atomic.write_text(flags.workdir / "few_steps.md", table)
    print(table)


def settings(training: runs.Training) -> Iterator[Setting]:
    """The settings in which a training is scored: with 20 steps and with few, in all variants."""
    if training.method in ("self_20", "trailing_20"):
        yield Setting(20)
    for steps in runs.COUNTS:
        yield Setting(steps)
        if training.method in ("self_20", "trailing_20"):
            yield Setting(steps, recalibrated=True)


def score(training: runs.Training, workdir: Path) -> list[dict[str, Any]]:
    """One row per setting; see `scores.kept`."""

    def rows(model: inference.DepthModel) -> Iterator[dict[str, Any]]:
        for setting in settings(training):
            asked = {"steps": setting.steps, "recalibrated": setting.recalibrated}
            yield asked | scores.score_setting(model, setting)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the checkpoint has decoder batch")
        return scores.kept(workdir / training.name, FILE, rows)


def ratio_to_20(row: Row, rows: Iterable[Row]) -> float | None:
    """AbsRel relative to the 20-step model with the same seed, run with 20 steps."""
    found = [
        r for r in rows if (r["method"], r["seed"], r["steps"]) == ("self_20", row["seed"], 20)
    ]
    return row["abs_rel"] / found[0]["abs_rel"] if found else None


def tables(rows: Sequence[Row]) -> str:
    """Every method in every setting, as Markdown."""
    lines = []
    for method, title in WAYS.items():
        for recalibrated, ending in ((False, ""), (True, ", recalibrated")):
            for steps in (20, 4, 2, 1):
                found = [
                    row
                    for row in rows
                    if (row["method"], row["steps"], row["recalibrated"])
                    == (method, steps, recalibrated)
                ]
                if found:
                    lines.append([title + ending, str(steps), *_cells(found)])
    header = ["", "steps", "AbsRel", "vs 20 steps", "RMSE", "training, CPU s", "CPU ms per image"]
    return markdown(header, lines) + "\n"


def _cells(rows: Sequence[Row]) -> list[str]:
    changes = [100 * (row["abs_rel_to_20"] - 1) for row in rows if row["abs_rel_to_20"]]
    change = f"{statistics.fmean(changes):+.1f}%" if changes else ""
    if len(changes) > 1:
        change += f" ± {statistics.stdev(changes):.1f}"
    cost = [values(rows, name, 0) for name in ("cpu_seconds", "predict_ms")]
    return [values(rows, "abs_rel"), change, values(rows, "rmse", 2), *cost]


if __name__ == "__main__":
    main()
