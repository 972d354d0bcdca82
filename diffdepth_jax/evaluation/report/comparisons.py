"""Other results to show beside a new one: an earlier run, a control, another model."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffdepth_jax import config
from diffdepth_jax.evaluation.protocols import OPTIONS, Protocol
from diffdepth_jax.evaluation.report import results


def parse(texts: Iterable[str]) -> dict[str, str]:
    """Names and paths of texts like `control=runs/control/metrics.json`.

    Raises:
      ValueError: for a text without a name, or a name given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not (name and sign and path) or name in found:
            raise ValueError(
                f"compare is {text!r}; it must be NAME=PATH with a name of its own and the path of "
                "a metrics.json"
            )
        found[name] = path
    return found


def read(
    compare: Mapping[str, str | os.PathLike], protocol: Protocol, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The parts of other results that stand beside one under a protocol, by their given name.

    Args:
      compare: a name to a `metrics.json`, or to the directory that results were written to.
      protocol, options: of ours; where theirs differ, that is stated in `differences`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds no result, or one under another protocol.
    """
    return {name: _read(Path(path), protocol, options) for name, path in compare.items()}


def _read(path: Path, protocol: Protocol, options: Mapping[str, Any]) -> dict[str, Any]:
    file = path.expanduser()
    if file.is_dir():
        own = file / protocol.name / results.METRICS_FILE
        file = own if own.exists() else file / results.METRICS_FILE
    if not file.exists():
        raise FileNotFoundError(
            f"{file} does not exist: compare with a metrics.json, or with the directory that it "
            "was written to"
        )
    try:
        other = json.loads(file.read_bytes())
        name, theirs = other["protocol"], dict(other["options"])
        parts = {"num_images": int(other["num_images"]), "metrics": dict(other["metrics"])}
    except (ValueError, KeyError, TypeError) as error:  # ValueError: also bytes that are no text.
        raise ValueError(
            f"{file} is no metrics.json of an evaluation ({error!r}): compare with one, or with "
            "the directory that it was written to"
        ) from error
    if name != protocol.name:
        raise ValueError(
            f"{file} is a result under the protocol {name}; it cannot stand beside one under "
            f"{protocol.name}"
        )
    parts |= {key: other.get(key, {}) for key in ("conditions", "classes")}
    ours = json.loads(json.dumps(protocol.options | dict(options)))
    theirs = dict.fromkeys(OPTIONS) | theirs  # The file may be older than an option.
    return {
        "path": str(path),
        **parts,
        "differences": config.differences(ours, theirs, "options"),
    }
