"""Reads arrays and config from this project's checkpoints (`WORKDIR/checkpoints/<step>/`).

By default, Orbax restores arrays onto the devices that wrote them, and fails if their number
differs. Here every array is restored to NumPy, using the tree stored in the checkpoint, so a run on
eight devices can be opened on one; the optimiser's arrays are not restored.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax import run_files
from diffdepth_jax.errors import MissingFileError, UserError, WeightsError, naming_file
from diffdepth_jax.weights import checksums, rules
from diffdepth_jax.weights.text import parse_json, shown

Step = int | Literal["best"]
_COLLECTIONS = ("step", "params", "batch_stats", "ema_params")

# The items of a step's directory, each with a file that it must have.
ITEMS = {
    name: tuple(f"{name}/{file}" for file in files)
    for name, files in (
        (run_files.STATE, ("_METADATA", "manifest.ocdbt", "d")),
        (run_files.STEP_CONFIG, ("metadata",)),
        (run_files.STEP_DATA, ("metadata",)),
    )
}
_TO_READ = (run_files.STATE, run_files.STEP_CONFIG)

# Raised by Orbax and TensorStore for damaged files.
_DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, OSError),
    *(RecursionError, NotImplementedError, AssertionError),
)


@dataclass(frozen=True)
class CheckpointContents:
    """Everything needed to use a model: nested dicts of NumPy arrays, and its config.

    Attributes:
        step: number of completed updates.
        config: the resolved config of the whole experiment.
        params: trained parameters.
        batch_stats: running statistics; empty if the model has none.
        ema_params: exponential moving average of `params`; empty if none was kept.
    """

    step: int
    config: dict[str, Any]
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    ema_params: dict[str, Any]


def latest_step(path: str | os.PathLike[str]) -> int | None:
    """The newest complete checkpoint in a run or `checkpoints` directory; None if there is none."""
    return max(steps(Path(path)), default=None)


def faults(
    directory: Path, items: Sequence[str] = tuple(ITEMS), *, contents: bool = True
) -> list[str]:
    """Short reasons why a step's directory is incomplete; empty if it is complete.

    Args:
        directory: the directory of one step.
        items: the required `ITEMS`; training needs `data`, using a model does not.
        contents: whether to compare checksums, which reads all files, or only file sizes.

    Raises:
        FileError: if a file cannot be read.
    """
    with naming_file(directory, "read"):
        needed = [name for item in items for name in ITEMS[item]]
        missing = [f"{name} is missing" for name in needed if not (directory / name).exists()]
        return missing or checksums.faults(directory, items, contents=contents)


def damaged(directory: Path, items: Sequence[str], what: str) -> WeightsError:
    """The error for a damaged step directory; names an older step that is complete."""
    remedy = "copy it again"
    if directory.name.isdecimal():
        older = (step for step in steps(directory.parent) if step < int(directory.name))
        for step in sorted(older, reverse=True):
            if not faults(directory.parent / str(step), items):
                remedy += f", or move it away and continue from step {step}, which is complete"
                break
        else:
            remedy += "; the run has no complete older step"
    return WeightsError(
        f"{directory} is damaged or not a checkpoint of this project ({shown(what, 300)}): {remedy}"
    )


@contextlib.contextmanager
def naming_damage(directory: Path, items: Sequence[str]) -> Iterator[None]:
    """Turns errors from reading a damaged checkpoint into `damaged`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Orbax raises a plain `Exception` for an array that it cannot decode.
        if not isinstance(error, _DAMAGE) and type(error) is not Exception:
            raise
        what = str(error) or type(error).__name__
        raise damaged(directory, items, what) from error


def read_config(directory: Path) -> dict[str, Any]:
    """The config of the experiment that wrote a step's checkpoint, with at least the model's name.

    Raises:
        WeightsError: if it is damaged or not a config.
    """
    file = directory / run_files.STEP_CONFIG / "metadata"
    try:
        config = parse_json(file.read_text(), "config/metadata")
    except (OSError, ValueError) as error:
        raise damaged(directory, _TO_READ, str(error)) from error
    for path in ("model", "model.name"):
        inner = config
        for name in path.split("."):
            inner = inner.get(name) if isinstance(inner, dict) else None
        if inner is None:
            raise WeightsError(f"{file} is not the config of a run: it has no {path}")
    if not isinstance(config["model"]["name"], str):
        raise WeightsError(f"{file} is not the config of a run: its model.name is not a string")
    return config


def checkpoint_directory(path: str | os.PathLike[str], *, step: Step | None = None) -> Path:
    """The directory of one step's checkpoint.

    Args:
        path: a run directory, its `checkpoints` directory, or the directory of one step.
        step: which checkpoint, or "best" for the best one in the run's evaluations; by default the
            newest complete one.

    Raises:
        MissingFileError: if the directory does not exist.
        FileError: if it cannot be read.
        WeightsError: if it has no complete checkpoint (of that step).
    """
    path = Path(path)
    with naming_file(path, "read"):
        if not path.is_dir():
            raise MissingFileError(f"{path}: no such run or checkpoint directory")
        if _is_complete(path) and step is None:
            return path
    found = steps(path)
    if not found:
        raise WeightsError(
            f"{path} has no complete checkpoint; expected a run directory (with "
            "checkpoints/<step>/), its checkpoints directory or one step's directory"
        )
    if step == "best":
        step, file = _best_step(path)
        if step not in found:
            raise WeightsError(
                f"{file} names step {step}, but {path} only has {sorted(found)}: set step to one "
                "of these"
            )
    step = max(found) if step is None else step
    if step not in found:
        raise WeightsError(
            f"{path} has no checkpoint of step {step}, only of steps {sorted(found)}"
        )
    return found[step]


def read_arrays(path: str | os.PathLike[str], *, step: Step | None = None) -> CheckpointContents:
    """Reads a checkpoint, regardless of how many devices wrote it.

    Args:
        path, step: as in `checkpoint_directory`.

    Raises:
        MissingFileError, FileError, WeightsError: as in `checkpoint_directory`, or if the
            checkpoint is damaged.

    Warns:
        UserWarning: about NaN and infinity, see `rules.warn_if_not_finite`.
    """
    return _read_step(checkpoint_directory(path, step=step))


def _best_step(path: Path) -> tuple[int, Path]:
    """The best step, and the file that names it."""
    for run in (path, path.parent):
        file = run / run_files.BEST
        with naming_file(file, "read"):
            text = file.read_text(errors="replace") if file.is_file() else None
        if text is not None:
            best = parse_json(text, str(file))
            step = best.get("step") if isinstance(best, dict) else None
            if type(step) is not int:
                raise WeightsError(f"{file} is damaged: it names no step; set step to a number")
            return step, file
    raise WeightsError(
        f"{path} has no {run_files.BEST}, which evaluations during training write "
        "(config.evaluation.every_steps): set step to a number, or leave it out for the newest"
    )


def steps(path: Path) -> dict[int, Path]:
    """Complete checkpoints in a run or `checkpoints` directory, by step.

    Partial checkpoints left by a crash have a different name.
    """
    with naming_file(path, "read"):
        directory = path / run_files.CHECKPOINTS
        directory = directory if directory.is_dir() else path
        if not directory.is_dir():
            return {}
        return {
            int(entry.name): entry
            for entry in directory.iterdir()
            if entry.name.isdecimal() and _is_complete(entry)
        }


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a directory contains a complete checkpoint or is one.

    Raises:
        FileError: if it cannot be read.
    """
    with naming_file(path, "read"):
        return _is_complete(Path(path)) or bool(steps(Path(path)))


def _is_complete(directory: Path) -> bool:
    state, config = directory / run_files.STATE, directory / run_files.STEP_CONFIG
    return (state / "_METADATA").is_file() and config.is_dir()


def _read_step(directory: Path) -> CheckpointContents:
    # Imported here because it imports JAX, which other weights files do not need.
    import jax
    import orbax.checkpoint as ocp

    directory = directory.resolve()  # Orbax requires absolute paths
    if found := faults(directory, _TO_READ):
        raise damaged(directory, _TO_READ, "; ".join(found[:3]))
    config = read_config(directory)
    with (
        naming_damage(directory, _TO_READ),
        contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler,
    ):
        tree = handler.metadata(directory / run_files.STATE).tree
        wanted = {name: tree[name] for name in _COLLECTIONS}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        state = handler.restore(
            directory / run_files.STATE,
            args=ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True),
        )
        step = int(state["step"])
    state = {name: state[name] or {} for name in _COLLECTIONS[1:]}
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = {jax.tree_util.keystr(at, simple=True, separator="/"): leaf for at, leaf in leaves}
    rules.warn_if_not_finite(arrays, f"The weights in {directory}")
    return CheckpointContents(step=step, config=config, **state)
