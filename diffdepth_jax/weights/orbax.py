"""Arrays and config from this project's own checkpoints (`WORKDIR/checkpoints/<step>/`).

Orbax restores arrays onto the devices that wrote them unless it is told otherwise, and fails where
their number differs. Here every array is asked for as NumPy, by the tree that the checkpoint itself
records, so a run of eight devices opens on one; the optimiser's arrays are not read.
"""

import json
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax.errors import WeightsError

BEST_FILE = "best.json"  # in a run's directory: {"step", "metric", "value"}
Step = int | Literal["best"]
_COLLECTIONS = ("step", "params", "batch_stats", "ema_params")


@dataclass(frozen=True)
class CheckpointContents:
    """What it takes to use a model: nested dicts of NumPy arrays, and how it was made.

    Attributes:
        step: updates done.
        config: the whole experiment, as it was resolved.
        params: trained parameters.
        batch_stats: running statistics; empty for a model without any.
        ema_params: exponential moving average of `params`; empty where none was kept.
    """

    step: int
    config: dict[str, Any]
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    ema_params: dict[str, Any]


def latest_step(path: str | os.PathLike[str]) -> int | None:
    """The newest complete checkpoint in a run or `checkpoints` directory; None if there is none."""
    return max(_steps(Path(path)), default=None)


def checkpoint_directory(path: str | os.PathLike[str], *, step: Step | None = None) -> Path:
    """The directory of one step's checkpoint.

    Args:
        path: a run directory, its `checkpoints` directory, or the directory of one step.
        step: which checkpoint, or "best" for the one that the run's evaluations found best; the
            newest complete one unless given.

    Raises:
        FileNotFoundError: if there is no such directory.
        WeightsError: if it holds no complete checkpoint (of that step).
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such run or checkpoint directory")
    if _is_complete(path) and step is None:
        return path
    steps = _steps(path)
    if not steps:
        raise WeightsError(
            f"{path} holds no complete checkpoint; a run directory (with checkpoints/<step>/), its "
            "checkpoints directory or one step's directory was expected"
        )
    if step == "best":
        step = _best_step(path)
    step = max(steps) if step is None else step
    if step not in steps:
        raise WeightsError(f"{path} has no checkpoint of step {step}, only of {sorted(steps)}")
    return steps[step]


def read_arrays(path: str | os.PathLike[str], *, step: Step | None = None) -> CheckpointContents:
    """Reads a checkpoint on any number of devices, whatever number wrote it.

    Args:
        path, step: as for `checkpoint_directory`.

    Raises:
        FileNotFoundError, WeightsError: as `checkpoint_directory`, or for a damaged checkpoint.
    """
    return _read_step(checkpoint_directory(path, step=step))


def _best_step(path: Path) -> int:
    for run in (path, path.parent):
        if (run / BEST_FILE).is_file():
            return json.loads((run / BEST_FILE).read_text())["step"]
    raise WeightsError(
        f"{path} has no {BEST_FILE}, which evaluations during training leave "
        "(config.evaluation.every_steps): say which step, or take the newest"
    )


def _steps(path: Path) -> dict[int, Path]:
    """Complete checkpoints by step; what a crash left half-written has another name."""
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not directory.is_dir():
        return {}
    return {
        int(entry.name): entry
        for entry in directory.iterdir()
        if entry.name.isdecimal() and _is_complete(entry)
    }


def _is_complete(directory: Path) -> bool:
    return (directory / "state" / "_METADATA").is_file() and (directory / "config").is_dir()


def _read_step(directory: Path) -> CheckpointContents:
    # Imported here because it brings JAX along, which reading other files of weights does not need.
    import jax
    import orbax.checkpoint as ocp

    directory = directory.resolve()
    try:
        with closing(ocp.PyTreeCheckpointHandler()) as handler:
            tree = handler.metadata(directory / "state").tree
            wanted = {name: tree[name] for name in _COLLECTIONS}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            state = handler.restore(
                directory / "state",
                args=ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True),
            )
        with closing(ocp.JsonCheckpointHandler()) as handler:
            config = handler.restore(directory / "config", args=ocp.args.JsonRestore())
    except (ValueError, LookupError, OSError) as error:
        raise WeightsError(
            f"{directory} is damaged or not a checkpoint of this project ({error}); "
            "use an earlier step of the run"
        ) from error
    return CheckpointContents(
        step=int(state["step"]),
        config=config,
        params=state["params"],
        batch_stats=state["batch_stats"] or {},
        ema_params=state["ema_params"] or {},
    )
