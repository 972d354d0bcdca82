"""Self-diffusion against diffusion of the ground truth and plain regression, at a small size.

    taskset -c 0 python studies/self_diffusion.py --workdir=runs/self_diffusion [--seeds=3]

Every training uses the network of configs/demo.py or configs/demo_regression.py and 500 updates of
2 whole frames of the committed sample (240 training streets of 64x208): 37 processor seconds for
regression, 60 with a sampler of 5 steps, 92 with 20, without compiling. Depth for training is
exact, or the lidar's 4.5% of it; all are scored on exact depth of the sample's 60 other streets.
`self_diffusion_runs.METHODS` lists the differences.

Existing results are neither trained nor scored again, and missing ones are left out of the tables,
so this can be interrupted; --score_only shows the progress. The workdir gets the runs,
`self_diffusion.csv`, `self_diffusion.png` and `tables.md`.
"""

from pathlib import Path
from typing import Any

import self_diffusion_report as report
import self_diffusion_runs as runs
import self_diffusion_scores as scores

from diffdepth_jax import atomic


def main() -> None:
    flags = runs.command_line(__doc__.splitlines()[0], only="self-dense-0,truth-dense-1")
    rows = runs.carry_out(runs.planned(flags.seeds), flags, scores.score)
    rows += beside(flags.workdir, flags.seeds)
    baseline = scores.baseline_scores()
    report.write_csv(flags.workdir / "self_diffusion.csv", rows)
    report.draw(rows, baseline, flags.workdir / "self_diffusion.png")
    tables = report.tables(rows, baseline)
    atomic.write_text(flags.workdir / "tables.md", tables)
    print(tables)


def beside(workdir: Path, seeds: int) -> list[dict[str, Any]]:
    """Rows for combinations of several networks, if these exist."""

    def there(*trainings: runs.Training) -> bool:
        return all((workdir / each.name / runs.RECORD).exists() for each in trainings)

    rows = []
    for depth in report.DEPTHS:
        networks = [runs.Training("regression", depth, seed) for seed in range(seeds)]
        if seeds > 1 and there(*networks):
            rows.append(scores.score_ensemble(networks, workdir))
    for seed in range(seeds):
        if there(*(runs.Training(method, "dense", seed) for method in ("regression", "self"))):
            rows.append(scores.score_grained(seed, workdir))
    return rows


if __name__ == "__main__":
    main()
