"""Scores for `robustness.py`: every run under every condition, the table and the pictures."""

import csv
import dataclasses
import io
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from reporting import git, markdown

from diffdepth_jax import atomic, inference, run_files, visualize
from diffdepth_jax.data import pipeline
from diffdepth_jax.data.sources import kitti
from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.protocols import Protocol
from diffdepth_jax.evaluation.report import page, results
from diffdepth_jax.evaluation.run.dataset import score_dataset

if TYPE_CHECKING:
    from robustness import Study

WEATHER = ("night", "fog", "rain", "snow", "night-rain")
CONTROLS = ("clear", "colour")
WRITTEN = (".json", ".csv", ".png", ".html")
_BATCH = 8
_COLUMNS = (
    "scenes", "images", "seed", "condition", "pixels", "metric", "before", "after", "num_images",
    "teacher_steps", "steps", "seconds", "command", "commit", "device",
)  # fmt: skip


def protocols_of(study: "Study") -> tuple[Protocol, ...]:
    """As predicted, scaled by the median, and aligned: three scores of the same predictions."""
    if study.scenes.kind == "tabletop":
        return (protocols.get("cleargrasp", predicts="depth"),)
    dense = protocols.get("dense")
    return (
        dense,
        dataclasses.replace(dense, name="dense_median", alignment="median"),
        dataclasses.replace(
            dense, name="dense_aligned", alignment="lsq_disparity", predicts="depth"
        ),
    )


def held_out(study: "Study") -> list[dict[str, Any]]:
    """The pictures of the split val, one condition at a time."""
    found = []
    for condition in (study.scenes.clear, *study.scenes.conditions):
        folder = study.frames if condition == study.scenes.clear else study.frames / condition
        source = kitti.Config(
            root=str(folder / "raw"),
            depth_root=str(study.frames / "depth"),
            depth="dense",
            split="val",
            cameras=("image_02",),
        )
        for sample in pipeline.evaluation_samples(source):
            # The same scene has the same id under every condition.
            found.append({**sample, "id": f"{condition}/{sample['id']}", "condition": condition})
    return found


def write(study: "Study", times: Mapping[str, Any]) -> None:
    """Scores the runs and writes all results; prints the table."""
    samples = held_out(study)
    records = [record for seed in study.seeds for record in _of_seed(study, seed, samples, times)]
    atomic.write_text(study.workdir / "robustness.csv", _csv(records))
    if study.scenes.kind == "street":
        atomic.write_text(study.workdir / "summary.json", json.dumps(summary(records), indent=2))
    _plot(study, records)
    _draw(study, samples)
    _page(study, samples)
    print("\n" + table(study, records))
    if study.scenes.kind == "street":
        shares = (
            f"{images} {repaired_scale(records, images, study.scenes.conditions):.0%}"
            for images in study.images
            if images not in CONTROLS
        )
        print(f"\nShare of the unaligned gain due to repaired scale and shift: {', '.join(shares)}")
    written = sorted(path.name for path in study.workdir.iterdir() if path.suffix in WRITTEN)
    print(f"\n{study.workdir}: {', '.join(written)}")


def _of_seed(
    study: "Study", seed: int, samples: Sequence[Mapping[str, Any]], times: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    before = _score(study, "teacher", seed, samples)
    commit = git("rev-parse", "--short", "HEAD")
    for images in study.images:
        after = _score(study, images, seed, samples)
        run = study.path(images, seed).name
        for key, (count, value) in before.items():
            condition, pixels, metric = key
            yield {
                "scenes": study.scenes.kind,
                "images": images,
                "seed": seed,
                "condition": condition,
                "pixels": pixels,
                "metric": metric,
                "before": value,
                "after": after[key][1],
                "num_images": count,
                "teacher_steps": study.teacher_steps,
                "steps": study.steps,
                "seconds": round(times[run]["seconds"]) if run in times else "",
                "command": times[run]["command"] if run in times else "",
                "commit": commit,
                "device": f"{os.cpu_count()} CPU cores",
            }


def _score(
    study: "Study", name: str, seed: int, samples: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str, str], tuple[int, float]]:
    """(number of images, mean) by (condition, pixels, metric)."""
    views, place = protocols_of(study), study.path(f"scores/{name}", seed)
    folders = {each.name: results.directory(place, views, each) for each in views}
    if not all((folder / run_files.PER_IMAGE).exists() for folder in folders.values()):
        model = inference.load(study.path(name, seed))
        score_dataset(_predictor(model), samples, views, place, batch_size=_BATCH)
    found = {}
    for view in views:
        with open(folders[view.name] / run_files.PER_IMAGE, newline="") as file:
            rows = list(csv.DictReader(file))
        for condition in dict.fromkeys(row["condition"] for row in rows):
            group = [row for row in rows if row["condition"] == condition]
            for column, pixels, metric in _wanted(view):
                values = [float(row[column]) for row in group if row.get(column)]
                if values:
                    mean = statistics.fmean(values)
                    found[condition, pixels, metric] = (len(values), mean)
    return found


def _wanted(view: Protocol) -> Iterator[tuple[str, str, str]]:
    """(column, pixels, our name for it) of a protocol's `per_image.csv`."""
    if view.classes:
        for pixels in ("ToM", "Other"):
            yield f"{pixels}/mae_mm", pixels, "mae_mm_aligned"
    else:
        ending = {"dense": "", "dense_median": "_median", "dense_aligned": "_aligned"}[view.name]
        yield "abs_rel", "all", f"abs_rel{ending}"


def _predictor(model: inference.DepthModel) -> Any:
    return lambda images: model.predict(images, flip_tta=True, batch_size=_BATCH)


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`{"rows": [...]}`, AbsRel before and after of each student and condition."""
    rows: dict[tuple, dict[str, Any]] = {}
    names = {"abs_rel": "abs_rel", "abs_rel_aligned": "aligned"}
    for record in records:
        if record["metric"] not in names:
            continue
        key = tuple(record[name] for name in ("images", "condition", "seed"))
        row = rows.setdefault(key, dict(zip(("images", "condition", "seed"), key, strict=True)))
        for when in ("before", "after"):
            row[f"{names[record['metric']]}_{when}"] = record[when]
    order = ("abs_rel_before", "abs_rel_after", "aligned_before", "aligned_after")
    return {
        "rows": [
            {name: row[name] for name in ("images", "condition", "seed", *order)}
            for row in rows.values()
        ]
    }


def gain(
    records: Sequence[Mapping[str, Any]], images: str, conditions: Sequence[str], metric: str, **of
) -> list[float]:
    """Relative decrease of the mean over conditions, per seed."""
    found = []
    for seed in dict.fromkeys(record["seed"] for record in records):
        wanted = {"images": images, "seed": seed, "metric": metric, **of}
        chosen = [
            record
            for record in records
            if record["condition"] in conditions
            and all(record[name] == value for name, value in wanted.items())
        ]
        before, after = (sum(record[when] for record in chosen) for when in ("before", "after"))
        found.append(1 - after / before)
    return found


def repaired_scale(
    records: Sequence[Mapping[str, Any]], images: str, conditions: Sequence[str]
) -> float:
    """The share of the gain that disappears when every image is aligned."""
    gains = {}
    for metric in ("abs_rel", "abs_rel_aligned"):
        gains[metric] = sum(
            record["before"] - record["after"]
            for record in records
            if (record["images"], record["metric"]) == (images, metric)
            and record["condition"] in conditions
        )
    return 1 - gains["abs_rel_aligned"] / gains["abs_rel"]


def table(study: "Study", records: Sequence[Mapping[str, Any]]) -> str:
    """Means over the seeds and the standard deviations of the changes, in Markdown."""
    metrics = list(dict.fromkeys((each["pixels"], each["metric"]) for each in records))
    blocks = []
    for pixels, metric in metrics:
        if metric == "abs_rel_median":
            continue
        head = ["condition", "teacher", *study.images]
        lines = []
        for condition in (study.scenes.clear, *study.scenes.conditions):
            lines.append([condition, *_cells(study, records, pixels, metric, (condition,))])
        number = len(study.scenes.conditions)
        lines.append(
            [
                f"mean of {number}",
                *_cells(study, records, pixels, metric, study.scenes.conditions),
            ]
        )
        text = markdown(head, [line for line in lines if line[1:]], right=True)
        blocks.append(f"{_title(pixels, metric)}\n\n{text}")
    return "\n\n".join(blocks)


def _title(pixels: str, metric: str) -> str:
    return {
        "abs_rel": "AbsRel, as predicted (change)",
        "abs_rel_aligned": "AbsRel after least squares in disparity (change)",
        "mae_mm_aligned": f"MAE in mm of {pixels} pixels, aligned (change)",
    }[metric]


def _cells(
    study: "Study",
    records: Sequence[Mapping[str, Any]],
    pixels: str,
    metric: str,
    conditions: Sequence[str],
) -> list[str]:
    chosen = [
        record
        for record in records
        if (record["pixels"], record["metric"]) == (pixels, metric)
        and record["condition"] in conditions
    ]
    if not chosen:
        return []
    digits = 0 if metric == "mae_mm_aligned" else 3
    cells = [f"{statistics.fmean(record['before'] for record in chosen):.{digits}f}"]
    for images in study.images:
        after = [record["after"] for record in chosen if record["images"] == images]
        changes = [-100 * each for each in gain(chosen, images, conditions, metric, pixels=pixels)]
        change = f"{round(statistics.fmean(changes), 1) + 0.0:+.1f}"  # never -0.0
        spread = f" ± {statistics.stdev(changes):.1f}" if len(changes) > 1 else ""
        cells.append(f"{statistics.fmean(after):.{digits}f} ({change}{spread}%)")
    return cells


def _plot(study: "Study", records: Sequence[Mapping[str, Any]]) -> None:
    """`robustness.png`: error of teacher and students by condition, with the spread over seeds."""
    pixels, metric = ("all", "abs_rel_aligned")
    if study.scenes.kind == "tabletop":
        pixels, metric = ("ToM", "mae_mm_aligned")
    conditions = list(dict.fromkeys(each["condition"] for each in records))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    names = ("teacher", *study.images)
    for place, name in enumerate(names):
        images, when = (study.images[0], "before") if name == "teacher" else (name, "after")
        means, spreads, at = [], [], []
        for number, condition in enumerate(conditions):
            values = [
                each[when]
                for each in records
                if (each["images"], each["condition"]) == (images, condition)
                and (each["pixels"], each["metric"]) == (pixels, metric)
            ]
            if values:
                at.append(number + (place - len(names) / 2 + 0.5) * 0.8 / len(names))
                means.append(statistics.fmean(values))
                spreads.append(statistics.stdev(values) if len(values) > 1 else 0)
        colour = "0.6" if name == "teacher" else f"C{place - 1}"
        axes.bar(at, means, 0.8 / len(names), yerr=spreads, label=name, color=colour)
    axes.set_xticks(range(len(conditions)), conditions)
    axes.set_ylabel(_title(pixels, metric).split(" (")[0], fontsize=8)
    axes.legend(ncols=len(names), fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    atomic.write(
        study.workdir / "robustness.png", lambda file: figure.savefig(file, dpi=90, format="png")
    )


def _draw(study: "Study", samples: Sequence[Mapping[str, Any]]) -> None:
    """One scene under each condition, with depth before and after."""
    seed, names = study.seeds[0], ("teacher", *study.images[:2])
    each = len(samples) // (1 + len(study.scenes.conditions))
    shown = [samples[start + each // 2] for start in range(0, len(samples), each)]
    predicted = {}
    for name in names:
        model = inference.load(study.path(name, seed))
        caption = "before: teacher" if name == "teacher" else f"after: {name} images"
        predicted[caption] = _predictor(model)([sample["image"] for sample in shown])
    visualize.save_comparison(
        study.workdir / "before_after.png",
        {sample["condition"]: sample["image"] for sample in shown},
        predicted,
        [sample["depth"] for sample in shown],
    )


def _page(study: "Study", samples: Sequence[Mapping[str, Any]]) -> None:
    """`report.html` for the first student and seed, compared with all others of that seed."""
    seed, ours = study.seeds[0], study.images[0]
    others = {f"{name} images": name for name in study.images[1:]}
    compare = {
        caption: study.path(f"scores/{name}", seed)
        for caption, name in {"teacher": "teacher", **others}.items()
    }
    predict, views = _predictor(inference.load(study.path(ours, seed))), protocols_of(study)
    with atomic.directory(study.workdir / "report"):
        score_dataset(
            predict, samples, views, study.workdir / "report", batch_size=_BATCH, compare=compare
        )
    page.save(study.workdir / "report", views, predict, samples)
    os.replace(study.workdir / "report" / run_files.REPORT, study.workdir / run_files.REPORT)


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow(
            {
                name: f"{value:.5f}" if isinstance(value, float | np.floating) else value
                for name, value in record.items()
            }
        )
    return text.getvalue()
