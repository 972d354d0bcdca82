"""Other results to compare with: an earlier run, a control, another model."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffdepth_jax import config, run_files
from diffdepth_jax.errors import ConfigError, DataError, MissingFileError, naming_file
from diffdepth_jax.evaluation.protocols import OPTIONS, Protocol


def parse(texts: Iterable[str]) -> dict[str, str]:
    """Parses texts such as `control=runs/control/metrics.json` into names and paths.

    Raises:
        ConfigError: if a name is missing or given twice.
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
    """Other results under the same protocol, by name.

    Args:
        compare: maps names to a `metrics.json` or its directory.
        protocol, options: those of our result; other options are listed in `differences`.

    Raises:
        FileError: if a file does not exist (`MissingFileError`) or cannot be read.
        DataError: if it is not a result, or one under another protocol.
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
                f"{file} does not exist: compare with a metrics.json or its directory"
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
    # ValueError: also for bytes that are not text. RecursionError: for deeply nested lists.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{file} is not the metrics.json of an evaluation ({type(error).__name__}: {error}): "
            "compare with an unmodified one or its directory"
        ) from error
    if name != protocol.name:
        raise DataError(
            f"{file} is a result under the protocol {name}; it cannot be compared with one under "
            f"{protocol.name}"
        )
    ours = json.loads(json.dumps(protocol.options | dict(options)))
    theirs = dict.fromkeys(OPTIONS) | theirs  # the file may be older than an option
    return {
        "path": str(path),
        **parts,
        "differences": config.differences(ours, theirs, "options"),
    }


def _means(part: Mapping[str, Any]) -> dict[str, Any]:
    """Checks and returns `num_images` and `metrics` of a result or one of its groups."""
    metrics = dict(part["metrics"])
    for name, value in metrics.items():
        if type(value) not in (int, float) or not abs(value) < 1e300:  # NaN is neither
            raise ValueError(f"{name} is not a finite number")
    if type(part["num_images"]) is not int or part["num_images"] < 0:
        raise ValueError("num_images is not a number of images")
    return {"num_images": part["num_images"], "metrics": metrics}
