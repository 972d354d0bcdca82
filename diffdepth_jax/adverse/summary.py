"""Which images are rejected, and a summary table by condition."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Sequence
from pathlib import Path

from diffdepth_jax import atomic
from diffdepth_jax.adverse.config import StructureConfig
from diffdepth_jax.adverse.manifest import Record

FILE = "summary.csv"


def reject(records: Sequence[Record], config: StructureConfig) -> list[Record]:
    """The records, with those that miss the config's structure limits marked as rejected."""
    records = [_against_limits(record, config) for record in records]
    for condition in {record.condition for record in records}:
        places = [
            place
            for place, record in enumerate(records)
            if record.condition == condition and _abs_rel(record) is not None
        ]
        # for equal errors, the later one
        places.sort(key=lambda place: (_abs_rel(records[place]), place))
        for place in places[len(places) - int(config.worst_share * len(places)) :]:
            if records[place].status == "ok":
                reason = f"abs_rel is among the worst {config.worst_share:.3g} of {condition}"
                records[place] = dataclasses.replace(
                    records[place], status="rejected", reason=reason
                )
    return records


def _against_limits(record: Record, config: StructureConfig) -> Record:
    if record.status != "ok" or record.structure is None:
        return record
    abs_rel, agreement = record.structure["abs_rel"], record.structure["edge_agreement"]
    reasons = []
    if config.max_abs_rel is not None and abs_rel is not None and abs_rel > config.max_abs_rel:
        reasons.append(f"abs_rel {abs_rel:.3f} is above {config.max_abs_rel:g}")
    least = config.min_edge_agreement
    if least is not None and agreement is not None and agreement < least:
        reasons.append(f"edge_agreement {agreement:.3f} is below {least:g}")
    if not reasons:
        return record
    return dataclasses.replace(record, status="rejected", reason=", ".join(reasons))


def rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """A row per condition, in the order of the records, and one for all images.

    Counts of each status and, for images with a structure score, the median and 90th percentile of
    `abs_rel` and the median of `edge_agreement`.
    """
    conditions = list(dict.fromkeys(record.condition for record in records))
    groups = {
        condition: [record for record in records if record.condition == condition]
        for condition in conditions
    }
    if len(groups) > 1:
        groups["all"] = list(records)
    return [_row(name, group) for name, group in groups.items()]


def _row(name: str, records: Sequence[Record]) -> dict[str, str]:
    errors = sorted(value for record in records if (value := _abs_rel(record)) is not None)
    structures = [record.structure for record in records if record.structure is not None]
    agreements = [value for each in structures if (value := each["edge_agreement"]) is not None]
    statuses = [record.status for record in records]
    return {
        "condition": name,
        "backend": " ".join(dict.fromkeys(record.backend for record in records))
        if name != "all"
        else "",
        "images": str(len(records)),
        **{status: str(statuses.count(status)) for status in ("ok", "failed", "rejected")},
        "abs_rel_median": f"{statistics.median(errors):.4f}" if errors else "",
        "abs_rel_90": f"{errors[int(0.9 * (len(errors) - 1))]:.4f}" if errors else "",
        "edge_agreement_median": f"{statistics.median(agreements):.4f}" if agreements else "",
    }


def write(workdir: Path, records: Sequence[Record]) -> None:
    """Writes `summary.csv`."""
    text = io.StringIO()
    table = rows(records)
    writer = csv.DictWriter(text, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    atomic.write_text(workdir / FILE, text.getvalue())


def table(records: Sequence[Record]) -> str:
    """The rows as text for a terminal; "no images" for a shard without any."""
    found = rows(records)
    if not found:
        return "no images"
    lines = [list(found[0]), *[list(row.values()) for row in found]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if place < 2 else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _abs_rel(record: Record) -> float | None:
    return None if record.structure is None else record.structure["abs_rel"]
