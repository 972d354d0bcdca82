"""`report.html`: a result as one self-contained HTML file, including images.

`templates/page.html` defines its layout.
"""

import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jinja2
import numpy as np

from diffdepth_jax import atomic, run_files, visualize
from diffdepth_jax.errors import naming_file
from diffdepth_jax.evaluation import boundary, metrics
from diffdepth_jax.evaluation.protocols import Comparison, Protocol
from diffdepth_jax.evaluation.protocols.protocol import PredictFn, Prediction
from diffdepth_jax.evaluation.report import figures, results, tables

_EXAMPLES = 3  # number of best, and of worst, images
_WORST_ERROR = 0.5  # relative error shown as fully red


@dataclasses.dataclass(frozen=True)
class _Result:
    """The content of one protocol's folder."""

    protocol: Protocol
    result: Mapping[str, Any]
    rows: Sequence[Mapping[str, str]]

    @property
    def headline(self) -> str:
        return tables.key_metrics(self.result)[0]

    def values(self, name: str) -> list[float]:
        return [float(row[name]) for row in self.rows if row[name]]


def save(
    workdir: Path,
    protocols: Sequence[Protocol],
    predict_fn: PredictFn | None,
    samples: Any,
) -> None:
    """Writes `report.html` next to the results of `run.dataset.score_dataset`.

    The best and worst images are predicted again for the page, so that nothing has to be kept until
    then; there are no images if `samples` is not a sequence.

    Args:
        workdir, protocols, predict_fn, samples: as in `score_dataset`.

    Raises:
        FileError: if the page cannot be written, or the results no longer exist.
    """
    found = []
    for protocol in protocols:
        place = results.directory(workdir, protocols, protocol)
        with naming_file(place, "read"):
            with open(place / run_files.PER_IMAGE, newline="") as file:
                rows = list(csv.DictReader(file))
            result = json.loads((place / run_files.METRICS).read_text())
        found.append(_Result(protocol, result, rows))
    examples = None
    if hasattr(samples, "__getitem__"):
        examples = _examples(found[0], predict_fn, samples)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["number"] = tables.number
    template = environment.get_template("page.html")
    text = template.render(sections=[_section(each) for each in found], examples=examples)
    with naming_file(workdir / run_files.REPORT, "written"):
        atomic.write_text(workdir / run_files.REPORT, text.lstrip() + "\n")


def _section(each: _Result) -> dict[str, Any]:
    result = each.result
    keys = tables.key_metrics(result)
    lines = [*tables.remarks(result), *tables.sources(result)]
    lines += [f"not readable: {image['id']}: {image['error']}" for image in result["unreadable"]]
    return {
        "protocol": result["protocol"],
        "heading": tables.heading(result),
        "options": tables.options(result),
        "columns": tables.columns(result),
        "metrics": tables.main_metrics(result),
        "boundary": {
            "kinds": boundary.KINDS,
            "columns": tables.boundary_columns(result),
            "rows": tables.boundary_rows(result),
        },
        "sparsification": _sparsification(result),
        "key_metrics": keys,
        "groups": [
            _group(result, kind, title)
            for kind, title in (("conditions", "By condition"), ("classes", "By class"))
            if result[kind]
        ],
        "charts": [_chart(each.values(name), name) for name in keys],
        "lines": lines,
    }


def _sparsification(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The curves, and a row for each order in which pixels are removed."""
    if "sparsification" not in result:
        return None
    rows = [
        (label, [result["metrics"].get(name) for name in names])
        for label, names in (
            ("by the spread", ("ause_rel", "rank_correlation", "rank_correlation_relative")),
            ("by depth (control)", ("ause_rel_depth", "rank_correlation_depth", "")),
            ("at random", ("ause_rel_random", "", "")),
        )
    ]
    return {
        "alt": "sparsification curve",
        "source": figures.sparsification(result["sparsification"]),
        "rows": rows,
        "samples": result["options"].get("num_samples", "several"),
    }


def _group(result: Mapping[str, Any], kind: str, title: str) -> dict[str, Any]:
    """A row for each source of results, with a value for each group and key metric."""
    groups, keys = result[kind], tables.key_metrics(result)
    rows = []
    for column in tables.columns(result):
        values = [column.groups.get(group, {}).get(name) for group in groups for name in keys]
        if any(value is not None for value in values):
            rows.append((column, values))
    names = [(group, part["num_images"]) for group, part in groups.items()]
    return {"title": title, "names": names, "rows": rows}


def _chart(values: Sequence[float], name: str) -> dict[str, str]:
    return {
        "alt": f"histogram of {name}",
        "source": figures.histogram(values),
        "caption": f"{name} of {len(values)} images, median {np.median(values):.4g} in red",
    }


def _examples(each: _Result, predict_fn: PredictFn | None, samples: Any) -> dict[str, Any]:
    name = each.headline
    scored = [index for index, row in enumerate(each.rows) if row[name]]
    order = sorted(scored, key=lambda index: float(each.rows[index][name]))
    if name in metrics.LARGER_IS_BETTER:
        order.reverse()
    number = min(_EXAMPLES, len(order))
    best = order[:number]
    worst = [index for index in order[::-1][:number] if index not in best]
    parts = [
        (title, [_example(each, predict_fn, samples[index], each.rows[index]) for index in indices])
        for title, indices in (("Best", best), ("Worst", worst))
    ]
    return {"metric": name, "protocol": each.protocol.name, "parts": parts}


def _example(
    each: _Result,
    predict_fn: PredictFn | None,
    sample: Mapping[str, Any],
    row: Mapping[str, str],
) -> dict[str, Any]:
    (prediction,) = each.protocol.predict(predict_fn, [sample])
    numbers = ", ".join(
        f"{name} {tables.number(float(row[name]))}" for name in tables.key_metrics(each.result)
    )
    panels = [
        (caption, figures.picture(picture))
        for caption, picture in _panels(each.protocol, prediction, sample)
    ]
    return {"id": row["id"], "numbers": numbers, "panels": panels}


def _panels(
    protocol: Protocol, prediction: Prediction, sample: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Image, prediction, ground truth and error of one image, side by side."""
    # Never None for a scored image.
    compared = cast(Comparison, protocol.compare(prediction, sample))
    valid_mask = compared.valid_mask
    if "image" in sample:
        yield "image", figures.smaller_image(protocol.scored_part(sample["image"]))
    low, high = map(float, np.percentile(compared.target[valid_mask], (2, 98)))
    everywhere = np.isfinite(compared.prediction)
    for caption, depth, mask in (
        (
            f"prediction, {low:.3g} to {high:.3g} m, near is bright",
            compared.prediction,
            everywhere,
        ),
        ("ground truth, same colours", compared.target, valid_mask),
    ):
        yield caption, visualize.colour_depth(figures.smaller(depth, mask), low, high)
    error = np.abs(compared.prediction - compared.target) / np.where(valid_mask, compared.target, 1)
    small = figures.smaller(error, valid_mask)
    known = np.isfinite(small)
    if compared.spread is not None:
        spread, depth = (
            figures.smaller(array, everywhere & np.isfinite(compared.spread))
            for array in (compared.spread, compared.prediction)
        )
        share = (spread / depth)[np.isfinite(spread)]
        largest = float(np.percentile(share, 98)) if share.size else 0.0
        caption = f"relative spread, white 0, purple {largest:.2g}"
        yield caption, visualize.colour_spread(spread, depth, largest)
    # Drawn as a prediction of 1 + error for a ground truth of 1.
    one = np.ones_like(small)
    painted = visualize.colour_error(one + np.where(known, small, 0), one, known, _WORST_ERROR)
    yield f"relative error, white 0, red {_WORST_ERROR:g}", painted
