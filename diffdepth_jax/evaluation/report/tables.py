"""The result of an evaluation as plain tables, with published results marked."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from diffdepth_jax.evaluation import boundary

_KEY_METRICS = ("abs_rel", "rmse", "delta1")
_AT_RATIOS = frozenset(boundary.METRICS[len(boundary.KINDS) :])


@dataclasses.dataclass(frozen=True)
class Column:
    """One source of metrics in a result.

    Attributes:
        label: name of the column.
        metrics: means over all images; may be empty.
        groups: means over conditions and classes, by the group's name.
        reported: whether they were published by others.
    """

    label: str
    metrics: Mapping[str, float]
    groups: Mapping[str, Mapping[str, float]]
    reported: bool = False


def columns(result: Mapping[str, Any]) -> list[Column]:
    """Ours, the training set's median map if known, other results, and published results."""
    found = [Column("ours", result["metrics"], _groups(result))]
    if result["baseline"]:
        found.append(Column("median map", result["baseline"], _groups(result, "baseline")))
    for name, other in result["comparisons"].items():
        found.append(Column(name, other["metrics"], _groups(other)))
    for each in result["reported"]:
        found.append(Column(each["label"], each["metrics"], each["groups"], reported=True))
    return found


def key_metrics(result: Mapping[str, Any]) -> list[str]:
    """The few metrics to show if space is limited; headline metric first."""
    names = list(result["metrics"])
    return [name for name in _KEY_METRICS if name in names and "rmse" in names] or names[:3]


def main_metrics(result: Mapping[str, Any]) -> list[str]:
    """All metrics except those in `boundary_rows`, but including their means over ratios."""
    return [name for name in result["metrics"] if name not in _AT_RATIOS]


def boundary_rows(result: Mapping[str, Any]) -> list[tuple[str, list[float | None]]]:
    """F-score, precision and recall of each column at each depth ratio and averaged; None if a
    column has none. Empty if boundaries were not measured."""
    if "boundary_f1" not in result["metrics"]:
        return []
    endings = {f"{ratio:.2f}": f"_{ratio:.2f}" for ratio in boundary.RATIOS} | {"average": ""}
    return [
        (
            label,
            [
                column.metrics.get(f"boundary_{kind}{ending}")
                for column in boundary_columns(result)
                for kind in boundary.KINDS
            ],
        )
        for label, ending in endings.items()
    ]


def boundary_columns(result: Mapping[str, Any]) -> list[Column]:
    """The columns that have boundary metrics."""
    return [column for column in columns(result) if "boundary_f1" in column.metrics]


def heading(result: Mapping[str, Any]) -> str:
    """What was scored, in one line."""
    unreadable = result["num_unreadable"]
    return (
        f"{result['num_images']} images, {result['num_skipped']} skipped without a valid pixel"
        + (f", {unreadable} not readable" if unreadable else "")
        + "; mean over images of each image's mean over pixels"
    )


def options(result: Mapping[str, Any]) -> str:
    """The options that are set, in one line."""
    given = {name: value for name, value in result["options"].items() if value is not None}
    return ", ".join(f"{name}={_show(value)}" for name, value in given.items())


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Notes for interpreting the numbers."""
    lines = []
    if result["num_nonfinite"] or result["num_clipped"]:
        lines.append(
            f"{result['num_nonfinite']} scored pixels were predicted as NaN or infinite and "
            f"{result['num_clipped']} outside the range; they were clipped to its ends"
        )
    if result["num_zero"]:
        filled = result["options"].get("fill_zeros") == "background"
        lines.append(
            f"{result['num_zero']} pixels of the predictions were 0: "
            + ("filled from their neighbours" if filled else "scored as the nearest depth")
        )
    fewer: dict[int, list[str]] = {}
    for name, count in result.get("num_images_of", {}).items():
        fewer.setdefault(count, []).append(name)
    for count, names in fewer.items():
        lines.append(f"only {count} images have {', '.join(names)}")
    for name, other in result["comparisons"].items():
        if other["num_images"] != result["num_images"]:
            lines.append(f"{name} was scored on {other['num_images']} images")
        if other["differences"]:
            lines.append(
                f"{name} used other options (ours -> theirs): {'; '.join(other['differences'])}"
            )
    together: dict[tuple[str, ...], list[str]] = {}
    for each in result["not_comparable"]:
        groups = {"": each["metrics"], **each["groups"]}
        numbers = ", ".join(
            f"{metric} {value:g} {group}".rstrip()
            for group, metrics in groups.items()
            for metric, value in metrics.items()
        )
        key = each["source"], *each["differences"]
        together.setdefault(key, []).append(f"{each['label']}: {numbers}")
    for (source, *differences), found in together.items():
        lines.append(
            f"not comparable, because evaluated with {', '.join(differences)}: {source}: "
            f"{'; '.join(found)}"
        )
    return lines


def sources(result: Mapping[str, Any]) -> list[str]:
    """The sources of published results, one line each."""
    together: dict[str, list[str]] = {}
    for each in result["reported"]:
        together.setdefault(each["source"], []).append(each["label"])
    return [f"{', '.join(labels)}: {source}" for source, labels in together.items()]


def table(result: Mapping[str, Any]) -> str:
    """The content of `metrics.json` as lines to print.

    One row per metric, with columns for ours, the training set's median map, other results and
    published results; the last are marked with a star and explained below. If there are conditions
    or classes, there is a row for each column with its headline metric in every group.
    """
    found = columns(result)
    labels = [column.label + "*" * column.reported for column in found]
    shown = [index for index, column in enumerate(found) if column.metrics]
    rows = [["", *(labels[index] for index in shown)]]
    for name in main_metrics(result):
        rows.append([name, *(number(found[index].metrics.get(name)) for index in shown)])
    lines = [f"{result['protocol']}: {heading(result)}", options(result), *_aligned(rows)]

    if at_ratios := boundary_rows(result):
        labels_of = [
            f"{column.label} {kind}"
            for column in boundary_columns(result)
            for kind in boundary.KINDS
        ]
        rows = [["depth edges by ratio", *labels_of]]
        rows += [[label, *map(number, values)] for label, values in at_ratios]
        lines += ["", *_aligned(rows)]

    headline = key_metrics(result)[0]
    for kind in ("conditions", "classes"):
        groups = result[kind]
        if not groups:
            continue
        rows = [[headline, *(f"{name} ({group['num_images']})" for name, group in groups.items())]]
        for label, column in zip(labels, found, strict=True):
            values = [column.groups.get(name, {}).get(headline) for name in groups]
            if any(value is not None for value in values):
                rows.append([label, *map(number, values)])
        lines += ["", *_aligned(rows)]
    lines += remarks(result)
    lines += [f"* {line}; published, not measured here" for line in sources(result)]
    return "\n".join(lines)


def number(value: float | None) -> str:
    """A metric with four decimals, or two if it is large; empty if there is none."""
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.2f}"


def _groups(result: Mapping[str, Any], part: str = "metrics") -> dict[str, Mapping[str, float]]:
    groups = result["conditions"] | result["classes"]
    return {name: group[part] for name, group in groups.items()}


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
