"""`report.html`: a result as one file that a browser opens anywhere, pictures and all."""

import base64
import csv
import dataclasses
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffdepth_jax import atomic, visualize
from diffdepth_jax.evaluation import metrics
from diffdepth_jax.evaluation.protocols import Protocol, crops, frames
from diffdepth_jax.evaluation.protocols.protocol import PredictFn
from diffdepth_jax.evaluation.report import results, tables

PAGE_FILE = "report.html"
_EXAMPLES = 3  # best and worst images, each
_PICTURE_WIDTH = 420
_BINS = 24
_WORST_ERROR = 0.5  # relative; where the error picture is fully red

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1120px;
  margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .2rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .2rem 0; } .small, figcaption { color: #666; font-size: .82rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #e6e6e6;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; border-bottom: 1px solid #999; } .groups th { border: 0; }
tbody th { font-weight: 400; border-bottom: 1px solid #e6e6e6; }
.reported { color: #9a9a9a; } .ours { font-weight: 600; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; margin-bottom: .8rem; } figure { margin: 0; }
.example { margin: 1rem 0 1.4rem; }
.panels { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; }
.panels img { width: 100%; display: block; } svg text { fill: #666; font: 11px system-ui; }
""".strip()


@dataclasses.dataclass(frozen=True)
class _Table:
    """What one protocol's folder holds."""

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
    """Writes `report.html` beside the results that `run.dataset.score_dataset` wrote.

    The pictures of the best and worst images are made by predicting these few once more, so that
    nothing has to be kept meanwhile; there are none where `samples` is no sequence.

    Args:
      workdir, protocols, predict_fn, samples: as they were given there.
    """
    tables = []
    for protocol in protocols:
        place = results.directory(workdir, protocols, protocol)
        with open(place / results.PER_IMAGE_FILE, newline="") as file:
            rows = list(csv.DictReader(file))
        result = json.loads((place / results.METRICS_FILE).read_text())
        tables.append(_Table(protocol, result, rows))
    parts = [_section(each) for each in tables]
    if hasattr(samples, "__getitem__"):
        parts.append(_examples(tables[0], predict_fn, samples))
    atomic.write_text(workdir / PAGE_FILE, _document(parts))


def _document(parts: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Depth evaluation</title>'
        '\n<meta name="viewport" content="width=device-width">\n'
        f"<style>\n{_STYLE}\n</style>\n<h1>Depth evaluation</h1>\n"
        '<p class="small">Numbers in grey are what others reported, not measured here.</p>\n'
        + "\n".join(parts)
        + "\n</html>\n"
    )


def _section(table: _Table) -> str:
    result = table.result
    keys = tables.key_metrics(result)
    charts = "".join(_histogram(table.values(name), name) for name in keys)
    groups = "".join(
        _group_table(result, kind, title)
        for kind, title in (("conditions", "By condition"), ("classes", "By class"))
        if result[kind]
    )
    lines = [*tables.remarks(result), *tables.sources(result)]
    lines += [f"not readable: {each['id']}: {each['error']}" for each in result["unreadable"]]
    return "\n".join(
        [
            f"<h2>{html.escape(result['protocol'])}</h2>",
            f"<p>{html.escape(tables.heading(result))}.</p>",
            f'<p class="small">{html.escape(tables.options(result))}</p>',
            _metric_table(result),
            groups,
            f'<h3>Images by their error</h3>\n<div class="charts">{charts}</div>',
            *(f'<p class="small">{html.escape(line)}</p>' for line in lines),
        ]
    )


def _metric_table(result: Mapping[str, Any]) -> str:
    found = [column for column in tables.columns(result) if column.metrics]
    head = "".join(f"<th{_kind(column)}>{html.escape(column.label)}</th>" for column in found)
    body = ""
    for name in result["metrics"]:
        cells = (
            f"<td{_kind(column)}>{tables.number(column.metrics.get(name))}</td>" for column in found
        )
        body += f"<tr><th>{name}</th>{''.join(cells)}</tr>\n"
    return f"<table>\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"


def _group_table(result: Mapping[str, Any], kind: str, title: str) -> str:
    """A row for each origin of numbers, a column for each group and key metric."""
    groups, keys = result[kind], tables.key_metrics(result)
    columns = [(group, name) for group in groups for name in keys]
    names = "".join(
        f'<th colspan="{len(keys)}">{html.escape(group)} ({part["num_images"]})</th>'
        for group, part in groups.items()
    )
    head = f'<tr class="groups"><th></th>{names}</tr>\n<tr><th></th>'
    head += "".join(f"<th>{name}</th>" for _, name in columns) + "</tr>"
    body = ""
    for column in tables.columns(result):
        values = [column.groups.get(group, {}).get(name) for group, name in columns]
        if any(value is not None for value in values):
            cells = "".join(f"<td>{tables.number(value)}</td>" for value in values)
            body += f"<tr{_kind(column)}><th>{html.escape(column.label)}</th>{cells}</tr>\n"
    return f"<h3>{title}</h3>\n<table>\n<thead>{head}</thead>\n<tbody>\n{body}</tbody></table>"


def _kind(column: tables.Column) -> str:
    if column.reported:
        return ' class="reported"'
    return ' class="ours"' if column.label == "ours" else ""


def _histogram(values: Sequence[float], name: str) -> str:
    """How many images have which value, as SVG; the line is at their median."""
    width, height, left, bottom = 320, 130, 28, 22
    low, high = min(values), max(values)
    high = high if high > low else low + 1
    counts, _ = np.histogram(values, bins=_BINS, range=(low, high))
    most = int(counts.max())
    step = (width - left) / _BINS

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left)

    bars = "".join(
        f'<rect x="{left + index * step:.1f}" y="{height * (1 - count / most):.1f}" '
        f'width="{step - 1:.1f}" height="{height * count / most:.1f}" fill="#7a9cc6"/>'
        for index, count in enumerate(counts)
    )
    median = float(np.median(values))
    labels = "".join(
        f'<text x="{across(value):.1f}" y="{height + 16}" text-anchor="{anchor}">{value:.3g}</text>'
        for value, anchor in ((low, "start"), ((low + high) / 2, "middle"), (high, "end"))
    )
    return (
        f'<figure><svg width="{width}" height="{height + bottom}" role="img" '
        f'aria-label="histogram of {name}">'
        f'<line x1="{left}" y1="{height}" x2="{width}" y2="{height}" stroke="#999"/>{bars}'
        f'<line x1="{across(median):.1f}" y1="0" x2="{across(median):.1f}" y2="{height}" '
        f'stroke="#c0392b"/><text x="0" y="10">{most}</text>{labels}</svg>'
        f"<figcaption>{name} of {len(values)} images, median {median:.4g} in red</figcaption>"
        "</figure>\n"
    )


def _examples(table: _Table, predict_fn: PredictFn | None, samples: Any) -> str:
    name = table.headline
    scored = [index for index, row in enumerate(table.rows) if row[name]]
    order = sorted(scored, key=lambda index: float(table.rows[index][name]))
    if name in metrics.LARGER_IS_BETTER:
        order.reverse()
    number = min(_EXAMPLES, len(order))
    worst = [index for index in order[::-1][:number] if index not in order[:number]]
    parts = [f"<h2>Best and worst images by {name}, {table.protocol.name}</h2>"]
    for title, indices in (("Best", order[:number]), ("Worst", worst)):
        if indices:
            parts.append(f"<h3>{title}</h3>")
        for index in indices:
            parts.append(_example(table, predict_fn, samples[index], table.rows[index]))
    return "\n".join(parts)


def _example(
    table: _Table,
    predict_fn: PredictFn | None,
    sample: Mapping[str, Any],
    row: Mapping[str, str],
) -> str:
    """Image, prediction, ground truth and error of one image, side by side."""
    protocol = table.protocol
    compared = protocol.compare(protocol.predict(predict_fn, [sample])[0], sample)
    valid_mask = compared.valid_mask
    scale = np.percentile(compared.target[valid_mask], (2, 98))
    error = np.abs(compared.prediction - compared.target) / np.where(valid_mask, compared.target, 1)
    panels = []
    if "image" in sample:
        image = frames.take(sample["image"], protocol.crop_reference)
        box = crops.crop_box(protocol.dataset, protocol.crop, image.shape[:2])
        panels.append(("image", _smaller_image(image[box])))
    span = f"{scale[0]:.3g} to {scale[1]:.3g} m, near is bright"
    everywhere = np.isfinite(compared.prediction)
    for caption, depth, mask in (
        (f"prediction, {span}", compared.prediction, everywhere),
        ("ground truth, same colours", compared.target, valid_mask),
    ):
        panels.append((caption, visualize.colour_depth(_smaller(depth, mask), *map(float, scale))))
    small = _smaller(error, valid_mask)
    known = np.isfinite(small)
    # As a prediction of 1 + error where 1 is true.
    one = np.ones_like(small)
    painted = visualize.colour_error(one + np.where(known, small, 0), one, known, _WORST_ERROR)
    panels.append((f"relative error, white 0, red {_WORST_ERROR:g}", painted))
    pictures = "".join(
        f'<figure><img alt="{caption}" src="{_data_uri(picture)}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for caption, picture in panels
    )
    numbers = ", ".join(
        f"{name} {tables.number(float(row[name]))}" for name in tables.key_metrics(table.result)
    )
    return (
        f'<div class="example"><p>{html.escape(row["id"])} <span class="small">{numbers}</span></p>'
        f'<div class="panels">{pictures}</div></div>'
    )


def _smaller(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Means over square blocks of the pixels in `mask`, so that sparse depth stays visible; NaN
    where a block has none."""
    factor = max(math.ceil(array.shape[1] / _PICTURE_WIDTH), 1)
    rows, columns = (side // factor for side in array.shape)
    blocks = (rows, factor, columns, factor)
    array, mask = (each[: rows * factor, : columns * factor] for each in (array, mask))
    sums = np.where(mask, array, 0).reshape(blocks).sum(axis=(1, 3), dtype=np.float64)
    counts = mask.reshape(blocks).sum(axis=(1, 3))
    return np.where(counts, sums / np.maximum(counts, 1), np.nan)


def _smaller_image(image: np.ndarray) -> np.ndarray:
    width = min(_PICTURE_WIDTH, image.shape[1])
    height = max(round(image.shape[0] * width / image.shape[1]), 1)
    return frames.resize_image(image, (height, width))


def _data_uri(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
