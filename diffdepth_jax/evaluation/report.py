"""The result of an evaluation as a plain table, other people's numbers beside it and marked so."""

from collections.abc import Mapping
from typing import Any


def table(result: Mapping[str, Any]) -> str:
    """The lines to print for what `metrics.json` holds.

    One row a metric; columns for ours, the training set's median map where known, and each source
    of reported numbers, marked with a star and explained below.
    """
    options = {name: value for name, value in result["options"].items() if value is not None}
    lines = [
        f"{result['protocol']}: {result['num_images']} images, {result['num_skipped']} skipped "
        "without a valid pixel; mean over images of each image's mean over pixels",
        ", ".join(f"{name}={_show(value)}" for name, value in options.items()),
    ]
    if result["num_nonfinite"] or result["num_clipped"]:
        lines.append(
            f"of the scored pixels {result['num_nonfinite']} were predicted NaN or infinite and "
            f"{result['num_clipped']} outside the range; they count at its ends"
        )

    columns = {"ours": result["metrics"]}
    if result["baseline"]:
        columns["median map"] = result["baseline"]
    notes = []
    for index, reported in enumerate(result["reported"], start=1):
        mark = "*" * index
        columns[reported["label"] + mark] = reported["metrics"]
        notes.append(f"{mark} {reported['source']}: their number, not measured here")

    rows = [["", *columns]]
    for name in result["metrics"]:
        values = (column.get(name) for column in columns.values())
        rows.append([name, *("" if value is None else f"{value:.4f}" for value in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *notes])


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
