"""The result of an evaluation, computed from its images' rows, and its files.

    metrics.json   {"protocol", "options", "num_images", "num_skipped", "num_unreadable",
                    "unreadable", "num_nonfinite", "num_clipped", "num_zero", "metrics",
                    "baseline", "conditions", "classes", "comparisons", "reported",
                    "not_comparable"}
    per_image.csv  id, condition, num_valid, num_nonfinite, num_clipped, num_zero, mean_depth, the
                   metrics, additional measures, and the metrics of each class; error if the image
                   could not be read

`num_images` is the number of scored images, `num_skipped` of those without valid pixels, and
`num_unreadable` of those that could not be read; the last two have empty metrics in the CSV and are
not part of the means. `metrics` and `baseline` are means over images (`baseline` is empty if no
training set is known); `conditions` and `classes` have the same by group, if there are several;
`comparisons` has other results under the same protocol; `reported` has published results with the
same options and number of images, with their source, and `not_comparable` has published results
with other options, which are listed.

Additional measures (`protocols.MEASURES`) are included in the metrics. A measure may be undefined
for some images, such as contours if the ground truth has none: its mean is then over the others,
whose number is in `num_images_of`. With several samples, there is `sparsification`: `removed`,
fractions of the pixels, and for each curve in `uncertainty.CURVES` the mean remaining error,
averaged over images. Both keys are omitted if they do not apply.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffdepth_jax import atomic, run_files
from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation import uncertainty
from diffdepth_jax.evaluation.protocols import MEASURES, Protocol, Score
from diffdepth_jax.evaluation.report import papers
from diffdepth_jax.evaluation.report.rows import Row

_COUNTS = ("num_valid", "num_nonfinite", "num_clipped", "num_zero", "mean_depth")
_LISTED = 100  # unreadable images listed in metrics.json; the CSV has all


def directory(workdir: Path, protocols: Sequence[Protocol], protocol: Protocol) -> Path:
    """Folder for one of several protocols' two files, named after the protocol."""
    return workdir if len(protocols) == 1 else workdir / protocol.name


def write(place: Path, rows: Sequence[Row], protocol: Protocol, result: Mapping[str, Any]) -> None:
    """Writes the two files to an existing directory."""
    atomic.write_text(place / run_files.PER_IMAGE, _csv(rows, protocol))
    atomic.write_text(
        place / run_files.METRICS, json.dumps(result, indent=2, allow_nan=False) + "\n"
    )


def of(
    rows: Sequence[Row],
    protocol: Protocol,
    options: Mapping[str, Any],
    comparisons: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `metrics.json`, from ordered rows that may cover several protocols.

    Raises:
        DataError: if no image has a valid pixel.
    """
    scored = [row for row in rows if not row.error and row.scores[protocol.name].num_valid]
    unreadable = [row for row in rows if row.error]
    if not scored:
        raise DataError(
            f"nothing to score: none of {len(rows)} images has a ground truth pixel between "
            f"{protocol.min_depth} and {protocol.max_depth} m in the {protocol.crop} crop"
            + (f" ({len(unreadable)} could not be read)" if unreadable else "")
        )
    scores = [row.scores[protocol.name] for row in scored]
    means = _means(scored, protocol)
    options = protocol.options | dict(options)
    known = options if protocol.dataset == "any" else {"dataset": protocol.dataset} | options
    reported, not_comparable = [], []
    for each in papers.of(protocol):
        if differences := each.differences(protocol, known, means["num_images"]):
            not_comparable.append(dataclasses.asdict(each) | {"differences": differences})
        else:
            reported.append(dataclasses.asdict(each))
    result = {
        "protocol": protocol.name,
        "options": options,
        "num_images": means["num_images"],
        "num_skipped": len(rows) - len(scored) - len(unreadable),
        "num_unreadable": len(unreadable),
        "unreadable": [{"id": row.id, "error": row.error} for row in unreadable[:_LISTED]],
        "num_nonfinite": sum(score.num_nonfinite for score in scores),
        "num_clipped": sum(score.num_clipped for score in scores),
        "num_zero": sum(score.num_zero for score in scores),
        "metrics": means["metrics"],
        "baseline": means["baseline"],
        "conditions": _by_condition(scored, protocol),
        "classes": _by_class(scored, protocol),
        "comparisons": dict(comparisons),
        "reported": reported,
        "not_comparable": not_comparable,
    }
    return result | _measured(scores, protocol)


def _measured(scores: Sequence[Score], protocol: Protocol) -> dict[str, Any]:
    """The entries of `metrics.json` for additional measures."""
    if protocol.boundary and not any("boundary_f1" in score.metrics for score in scores):
        raise DataError(
            "no image has a depth edge between scored pixels: leave out evaluation.boundary "
            "(--boundary)"
        )
    found: dict[str, Any] = {}
    counts = {
        name: sum(name in score.metrics for score in scores)
        for name in _names([score.metrics for score in scores])
    }
    if counts := {name: count for name, count in counts.items() if count < len(scores)}:
        found["num_images_of"] = counts
    if curves := [score.curves for score in scores if score.curves]:
        found["sparsification"] = {"removed": list(uncertainty.REMOVED)} | {
            name: np.mean([each[name] for each in curves], axis=0).tolist()
            for name in uncertainty.CURVES
        }
    return found


def _means(
    rows: Sequence[Row],
    protocol: Protocol,
    part: Callable[[Score], Mapping[str, float]] = lambda score: score.metrics,
) -> dict[str, Any]:
    """Means over the images that have this part, for our scores and the baseline's."""
    ours = [part(row.scores[protocol.name]) for row in rows]
    guessed = [part(row.baseline[protocol.name]) for row in rows if row.baseline]
    ours, guessed = ([metrics for metrics in each if metrics] for each in (ours, guessed))
    return {"num_images": len(ours), "metrics": _mean(ours), "baseline": _mean(guessed)}


def _mean(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the images that have it."""
    means = {}
    for name in _names(metrics):
        values = [each[name] for each in metrics if name in each]
        means[name] = math.fsum(values) / len(values)
    return means


def _names(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """All metrics present: the protocol's in order, then additional measures."""
    found = dict.fromkeys(name for each in metrics for name in each)
    return [name for name in found if name not in MEASURES] + [
        name for name in MEASURES if name in found
    ]


def _by_condition(rows: Sequence[Row], protocol: Protocol) -> dict[str, Any]:
    if protocol.conditions:
        groups = {
            name: [row for row in rows if name in row.condition] for name in protocol.conditions
        }
    else:
        found = sorted({row.condition for row in rows})
        groups = {name: [row for row in rows if row.condition == name] for name in found}
        groups = groups if len(groups) > 1 else {}
    return {name: _means(group, protocol) for name, group in groups.items() if group}


def _by_class(rows: Sequence[Row], protocol: Protocol) -> dict[str, Any]:
    names = sorted({name for row in rows for name in row.scores[protocol.name].classes})

    def part(name: str) -> Callable[[Score], Mapping[str, float]]:
        return lambda score: score.classes.get(name, {})

    # ToM before Other
    return {name: _means(rows, protocol, part(name)) for name in reversed(names)}


def _csv(rows: Sequence[Row], protocol: Protocol) -> str:
    scored = [row for row in rows if not row.error]
    classes = list(_by_class(scored, protocol))
    found = _names([row.scores[protocol.name].metrics for row in scored])
    names = [*protocol.metrics, *(name for name in found if name in MEASURES)]
    columns = [f"{name}/{metric}" for name in classes for metric in protocol.metrics]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "condition", *_COUNTS, *names, *columns, "error"])
    for row in rows:
        score = row.scores.get(protocol.name)
        if score is None or not score.num_valid:
            counts: list[Any] = ["" if score is None else 0] * (len(_COUNTS) - 1)
            metrics: list[Any] = [""] * (1 + len(names) + len(columns))
        else:
            counts = [getattr(score, name) for name in _COUNTS]
            parts = [score.classes.get(name, {}) for name in classes]
            metrics = [score.metrics.get(name, "") for name in names]
            metrics += [part.get(name, "") for part in parts for name in protocol.metrics]
        writer.writerow([row.id, row.condition, *counts, *metrics, row.error or ""])
    return text.getvalue()
