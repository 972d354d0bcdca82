"""Other results to compare a new one with: an earlier run, a control, another model."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffdepth_jax import config, run_files
from diffdepth_jax.errors import ConfigError, DataError, MissingFileError, naming_file
from diffdepth_jax.evaluation.protocols import OPTIONS, Protocol


def parse(texts: Iterable[str]) -> dict[str, str]:
    """Names and paths of texts like `control=runs/control/metrics.json`.

    Raises:
      ConfigError: for a text without a name, or a name given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not (name and sign and path) or name in found:
            raise ConfigError(
                f"compare is {text!r}; it must be NAME=PATH with a unique name and the path of "
                "a metrics.json"
            )
        found[name] = path
    return found


def read(
    compare: Mapping[str, str | os.PathLike], protocol: Protocol, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Other results under the same protocol, by the names given to them.

    Args:
      compare: a name to a `metrics.json`, or to the directory that results were written to.
      protocol, options: of ours; where theirs differ, that is stated in `differences`.

    Raises:
      FileError: if there is no such file (`MissingFileError`), or it cannot be read.
      DataError: if it holds no result, or one under another protocol.
    """
    return {name: _read(Path(path), protocol, options) for name, path in compare.items()}


def _read(path: Path, protocol: Protocol, options: Mapping[str, Any]) -> dict[str, Any]:
    file = path.expanduser()
    with naming_file(path, "read"):
        if file.is_dir():
            own = file / protocol.name / run_files.METRICS
            file = own if own.exists() else file / run_files.METRICS
        if not file.exists():
            raise MissingFileError(
                f"{file} does not exist: compare with a metrics.json, or with the directory that "
                "it was written to"
            )
    with naming_file(file, "read"):
        content = file.read_bytes()
    try:
        other = json.loads(content)
        name, theirs = str(other["protocol"]), dict(other["options"])
        parts = _means(other)
        for kind in ("conditions", "classes"):
            groups = other.get(kind, {})
            parts[kind] = {group: _means(part) for group, part in groups.items()}
    # ValueError: also bytes that are not text. RecursionError: lists in lists, without end.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{file} is not a metrics.json of an evaluation ({type(error).__name__}: {error}): "
            "compare with one as it was written, or with the directory that it was written to"
        ) from error
    if name != protocol.name:
        raise DataError(
            f"{file} is a result under the protocol {name}; it cannot be compared with one under "
            f"{protocol.name}"
        )
    ours = json.loads(json.dumps(protocol.options | dict(options)))
    theirs = dict.fromkeys(OPTIONS) | theirs  # The file may be older than an option.
    return {
        "path": str(path),
        **parts,
        "differences": config.differences(ours, theirs, "options"),
    }


def _means(part: Mapping[str, Any]) -> dict[str, Any]:
    """`num_images` and `metrics` of a result or of one of its groups, checked."""
    metrics = dict(part["metrics"])
    for name, value in metrics.items():
        if type(value) not in (int, float) or not abs(value) < 1e300:  # NaN is neither
            raise ValueError(f"{name} is not a finite number")
    if type(part["num_images"]) is not int or part["num_images"] < 0:
        raise ValueError("num_images is not a number of images")
    return {"num_images": part["num_images"], "metrics": metrics}
