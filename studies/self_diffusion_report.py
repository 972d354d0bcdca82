"""CSV, tables and plots of `studies/self_diffusion.py`, from its score rows."""

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import self_diffusion_runs as runs
import self_diffusion_scores as scores
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reporting import markdown

from diffdepth_jax import atomic
from diffdepth_jax.evaluation import boundary, uncertainty

Row = Mapping[str, Any]
COLUMNS = (
    *("method", "depth", "seed", "updates", "steps", "recalibrated", "samples", "flip_tta"),
    *(*scores.METRICS, *scores.EDGES, *scores.SPREAD, "cpu_seconds", "predict_ms"),
    *("config", "changes", "commit", "device"),
)
DEPTHS = {"dense": "100%", "groundtruth": "4.5%"}
_TRUTHS = ("regression", "self", "truth", "pure", "pure_paper", "pure_sample", "self_paper")
# Besides the methods: see `scores.score_ensemble` and `score_grained`.
_BESIDE = {
    "regression_ensemble": "regression, three networks",
    "regression_grain": "regression with the grain of another frame's samples",
}
# DiffusionDepth's ablation on NYUv2 without retraining: AbsRel / RMSE.
_PAPER_STEPS = {20: "0.086 / 0.298", 15: "0.118 / 0.455", 10: "0.182 / 0.751"}
_COLOURS = {"regression": "#555555", "self": "#1f77b4", "self_20": "#d62728"}


def write_csv(path: Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> None:
    """One line per network and setting."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        numbers = {name: f"{value:.4f}" for name, value in row.items() if _is_score(name, value)}
        writer.writerow({**row, **numbers})
    atomic.write_text(path, file.getvalue())


def _is_score(name: str, value: Any) -> bool:
    return isinstance(value, float) and name not in ("cpu_seconds", "predict_ms")


def tables(rows: Sequence[Row], baseline: Row) -> str:
    """All tables as Markdown."""
    parts = [
        ("What is diffused", ground_truth_table(rows, baseline)),
        ("Numbers of steps", steps_table(rows)),
        ("Edges and samples", edges_table(rows)),
        ("Spread and error", spread_table(rows)),
        ("Variants", variants_table(rows)),
    ]
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts) + "\n"


def ground_truth_table(rows: Sequence[Row], baseline: Row) -> str:
    """AbsRel of each objective by the density of the training depth."""
    lines = [
        [
            runs.METHODS[method].title,
            *(values(_plain(rows, method, depth), "abs_rel") for depth in DEPTHS),
        ]
        for method in _TRUTHS
        if _plain(rows, method)
    ]
    lines.append(["median depth map of the training frames", f"{baseline['abs_rel']:.3f}", ""])
    return markdown(["", *(f"{share} of the pixels" for share in DEPTHS.values())], lines)


def steps_table(rows: Sequence[Row]) -> str:
    """AbsRel / RMSE with other numbers of steps: as trained, recalibrated, retrained."""

    def cell(found: list[Row]) -> str:
        return f"{values(found, 'abs_rel')} / {values(found, 'rmse', 2)}" if found else ""

    lines = []
    for steps in reversed(scores.STEPS):
        line = [str(steps)]
        for method in ("self_20", "self"):
            asked = [r for r in _of(rows, method, "dense") if r["steps"] == steps and _single(r)]
            line += [
                cell([r for r in asked if r["recalibrated"] == recalibrated])
                for recalibrated in (False, True)
            ]
        retrained = "self" if steps == 5 else f"self_{steps}"
        line += [cell(_plain(rows, retrained, "dense")), _PAPER_STEPS.get(steps, "")]
        lines.append(line)
    regression = cell(_plain(rows, "regression", "dense"))
    lines.append(["regression", *[""] * 4, regression, ""])
    header = ["steps", "trained at 20", "recalibrated", "trained at 5", "recalibrated"]
    return markdown([*header, "retrained", "paper, trained at 20"], lines)


def edges_table(rows: Sequence[Row]) -> str:
    """Error, edges and cost of one prediction, with flip_tta and with several samples."""
    ways: dict[str, Callable[[Row], bool]] = {
        "one prediction": _single,
        "with the mirrored image": lambda row: row["flip_tta"],
        "mean of several": lambda row: row["samples"] > 1,
    }
    names = ("abs_rel", "rmse", "boundary_f1", "boundary_f1_1.05", "boundary_f1_1.15")
    names += ("boundary_precision_1.15", "boundary_recall_1.15")
    lines = []
    for method in (*runs.METHODS, *_BESIDE):
        for way, chosen in ways.items():
            found = [r for r in _of(rows, method, "dense") if chosen(r) and _own(r)]
            if found:
                digits = {"rmse": 2}
                cells = [values(found, name, digits.get(name, 3)) for name in names]
                cost = [values(found, name, 0) for name in ("cpu_seconds", "predict_ms")]
                lines.append([_title(method), way, *cells, *cost])
    header = ["", "", "AbsRel", "RMSE", "boundary F", "F at 1.05", "F at 1.15"]
    header += ["precision at 1.15", "recall at 1.15"]
    return markdown([*header, "training, CPU s", "CPU ms per image"], lines)


def spread_table(rows: Sequence[Row]) -> str:
    """How well a spread predicts the error, compared with depth alone."""
    names = (
        *("rank_correlation", "rank_correlation_depth"),
        *("ause_rel", "ause_rel_depth", "ause_rel_random"),
        *("log_rank_correlation", "log_ause_rel", "log_ause_rel_depth", "log_ause_rel_random"),
    )
    lines = []
    for method in (*runs.METHODS, *_BESIDE):
        for samples, flip_tta in sorted({(r["samples"], r["flip_tta"]) for r in rows}):
            for depth, share in DEPTHS.items():
                found = [
                    r
                    for r in _of(rows, method, depth)
                    if (r["samples"], r["flip_tta"]) == (samples, flip_tta) and "spread" in r
                ]
                if found:
                    of = "mirrored" if flip_tta else f"{samples} {_drawn(method)}"
                    cells = [values(found, name) for name in names]
                    lines.append([_title(method), share, of, *cells])
    header = ["", "depth", "spread of", "rank correlation", "of depth"]
    header += ["AUSE", "by depth", "random"]
    header += ["log: rank correlation", "AUSE", "by depth", "random"]
    return markdown(header, lines)


def _drawn(method: str) -> str:
    return "networks" if method.endswith("_ensemble") else "samples"


def _title(method: str) -> str:
    return _BESIDE.get(method) or runs.METHODS[method].title


def variants_table(rows: Sequence[Row]) -> str:
    """Every method on exact depth, one prediction each."""
    names = ("abs_rel", "rmse", "silog", "delta1", "boundary_f1")
    digits = {"rmse": 2, "silog": 1}
    lines = [
        [runs.METHODS[method].title, *(values(found, name, digits.get(name, 3)) for name in names)]
        for method in runs.METHODS
        if (found := _plain(rows, method, "dense"))
    ]
    return markdown(["", "AbsRel", "RMSE", "SILog", "delta1", "boundary F"], lines)


def draw(rows: Sequence[Row], baseline: Row, path: Path) -> None:
    """Steps, contours, and sparsification side by side, as PNG."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    _draw_steps(axes[0], rows, baseline)
    _draw_edges(axes[1], rows)
    _draw_sparsification(axes[2], rows)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.legend(fontsize=7, frameon=False)
    # Equal values give equal bytes.
    atomic.write(path, lambda file: figure.savefig(file, dpi=110, metadata={"Software": None}))


def _draw_steps(axes: Axes, rows: Sequence[Row], baseline: Row) -> None:
    for method, name in (("self_20", "trained at 20"), ("self", "trained at 5")):
        own = [r for r in _of(rows, method, "dense") if _single(r) and r["seed"] == 0]
        for recalibrated, style in ((False, "--"), (True, "-")):
            trained = _plain(own, method)
            found = sorted(
                (r for r in own if r["recalibrated"] == recalibrated or r in trained),
                key=lambda row: row["steps"],
            )
            label = f"{name}, {'recalibrated' if recalibrated else 'unchanged'}"
            errors = [r["abs_rel"] for r in found], [r["steps"] for r in found]
            axes.plot(errors[1], errors[0], style, marker=".", color=_COLOURS[method], label=label)
    retrained = [
        (steps, statistics.fmean(r["abs_rel"] for r in found))
        for steps in scores.STEPS
        if (found := _plain(rows, "self" if steps == 5 else f"self_{steps}", "dense"))
    ]
    if retrained:
        axes.plot(*zip(*retrained, strict=True), "k^", label="retrained")
    regression = [r["abs_rel"] for r in _plain(rows, "regression", "dense")]
    if regression:
        axes.axhline(statistics.fmean(regression), color=_COLOURS["regression"], label="regression")
    axes.axhline(baseline["abs_rel"], color="#bbbbbb", ls=":", label="median map")
    axes.set(xlabel="denoising steps", ylabel="AbsRel", xticks=scores.STEPS)
    axes.margins(y=0.4)  # for the legend


def _draw_edges(axes: Axes, rows: Sequence[Row]) -> None:
    names = [f"boundary_f1_{ratio:.2f}" for ratio in boundary.RATIOS]
    for method, colour in _COLOURS.items():
        for several, style in ((False, "-"), (True, "--")):
            found = [
                r
                for r in _of(rows, method, "dense")
                if (r["samples"] > 1 if several else r in _plain(rows, method))
            ]
            if found:
                means = [statistics.fmean(r[name] for r in found) for name in names]
                ending = f", mean of {scores.SAMPLES}" if several else ""
                label = runs.METHODS[method].title + ending
                axes.plot(boundary.RATIOS, means, style, marker=".", color=colour, label=label)
    axes.set(xlabel="ratio of depths at a contour", ylabel="boundary F-score", ylim=(0, None))


def _draw_sparsification(axes: Axes, rows: Sequence[Row]) -> None:
    found = [r for r in _of(rows, "self", "dense") if "curve_spread" in r]
    for name, colour in (("spread", "#1f77b4"), ("depth", "#ff7f0e"), ("oracle", "#2ca02c")):
        if found:
            curves = [r[f"curve_{name}"] for r in found]
            mean = [statistics.fmean(column) for column in zip(*curves, strict=True)]
            label = {"spread": "spread of samples", "depth": "predicted depth"}.get(name, name)
            axes.plot(uncertainty.REMOVED, mean, color=colour, label=label)
    axes.axhline(1, color="#bbbbbb", ls=":", label="random order")
    axes.set(xlabel="share of pixels left out", ylabel="mean error of the rest / of all")


def _of(rows: Iterable[Row], method: str, depth: str | None = None) -> list[Row]:
    return [r for r in rows if r["method"] == method and depth in (None, r["depth"])]


def _single(row: Row) -> bool:
    return row["samples"] == 1 and not row["flip_tta"]


def _own(row: Row) -> bool:
    """Whether a row uses the trained number of steps."""
    return row["asked_steps"] is None


def _plain(rows: Iterable[Row], method: str, depth: str | None = None) -> list[Row]:
    """One prediction of each network as trained."""
    return [r for r in _of(rows, method, depth) if _single(r) and _own(r)]


def values(rows: Sequence[Row], name: str, digits: int = 3) -> str:
    """Mean over seeds and, with several, their standard deviation."""
    found = [row[name] for row in rows if row.get(name) is not None]
    if not found:
        return ""
    mean = f"{statistics.fmean(found):.{digits}f}"
    return mean if len(found) == 1 else f"{mean} ± {statistics.stdev(found):.{digits}f}"
