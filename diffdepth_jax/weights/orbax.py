"""Arrays and config from this project's own checkpoints (`WORKDIR/checkpoints/<step>/`).

By default Orbax restores arrays onto the devices that wrote them, and fails if their number
differs. Here every array is restored as NumPy, by the tree that the checkpoint itself records, so a
run of eight devices opens on one; the optimiser's arrays are not restored.
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

# The items of a step's directory, with a file that each must have.
ITEMS = {
    name: tuple(f"{name}/{file}" for file in files)
    for name, files in (
        (run_files.STATE, ("_METADATA", "manifest.ocdbt", "d")),
        (run_files.STEP_CONFIG, ("metadata",)),
        (run_files.STEP_DATA, ("metadata",)),
    )
}
_TO_READ = (run_files.STATE, run_files.STEP_CONFIG)

# What Orbax and TensorStore raise for damaged files.
_DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, OSError),
    *(RecursionError, NotImplementedError, AssertionError),
)


@dataclass(frozen=True)
class CheckpointContents:
    """All that is needed to use a model: nested dicts of NumPy arrays, and its config.

    Attributes:
        step: updates done.
        config: the whole experiment, as it was resolved.
        params: trained parameters.
        batch_stats: running statistics; empty for a model without any.
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
    """Why a step's directory is not complete, in a few words each; empty if it is.

    Args:
        directory: of one step.
        items: those of `ITEMS` that are wanted: a model needs no `data`, training does.
        contents: compare the checksums of all files, which reads them; else only their sizes.

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
                remedy += f", or move it away and go on from step {step}, which is whole"
                break
        else:
            remedy += "; no older step of the run is whole"
    return WeightsError(
        f"{directory} is damaged or not a checkpoint of this project ({shown(what, 300)}): {remedy}"
    )


@contextlib.contextmanager
def naming_damage(directory: Path, items: Sequence[str]) -> Iterator[None]:
    """Turns what reading a damaged checkpoint raises into `damaged`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # For an array that it cannot decode, Orbax raises a plain `Exception`.
        if not isinstance(error, _DAMAGE) and type(error) is not Exception:
            raise
        what = str(error) or type(error).__name__
        raise damaged(directory, items, what) from error


def read_config(directory: Path) -> dict[str, Any]:
    """The config of the experiment that wrote a step's checkpoint, with at least the model's name.

    Raises:
        WeightsError: if it is damaged, or no config.
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
        raise WeightsError(f"{file} is not the config of a run: its model.name is not text")
    return config


def checkpoint_directory(path: str | os.PathLike[str], *, step: Step | None = None) -> Path:
    """The directory of one step's checkpoint.

    Args:
        path: a run directory, its `checkpoints` directory, or the directory of one step.
        step: which checkpoint, or "best" for the one that the run's evaluations found best; the
            newest complete one unless given.

    Raises:
        MissingFileError: if there is no such directory.
        FileError: if it cannot be read.
        WeightsError: if it holds no complete checkpoint (of that step).
    """
    path = Path(path)
    with naming_file(path, "read"):
        if not path.is_dir():
            raise MissingFileError(f"{path}: there is no such run or checkpoint directory")
        if _is_complete(path) and step is None:
            return path
    found = steps(path)
    if not found:
        raise WeightsError(
            f"{path} holds no complete checkpoint; a run directory (with checkpoints/<step>/), its "
            "checkpoints directory or one step's directory was expected"
        )
    if step == "best":
        step, file = _best_step(path)
        if step not in found:
            raise WeightsError(
                f"{file} names step {step}, but {path} has only {sorted(found)}: say which to use"
            )
    step = max(found) if step is None else step
    if step not in found:
        raise WeightsError(f"{path} has no checkpoint of step {step}, only of {sorted(found)}")
    return found[step]


def read_arrays(path: str | os.PathLike[str], *, step: Step | None = None) -> CheckpointContents:
    """Reads a checkpoint, whatever number of devices wrote it.

    Args:
        path, step: as for `checkpoint_directory`.

    Raises:
        MissingFileError, FileError, WeightsError: as `checkpoint_directory`, or for a damaged
            checkpoint.

    Warns:
        UserWarning: about NaN and infinity, as `rules.warn_if_not_finite`.
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
                raise WeightsError(f"{file} is damaged: it names no step; say which step to take")
            return step, file
    raise WeightsError(
        f"{path} has no {run_files.BEST}, which evaluations during training leave "
        "(config.evaluation.every_steps): say which step, or take the newest"
    )


def steps(path: Path) -> dict[int, Path]:
    """Complete checkpoints in a run or `checkpoints` directory, by step.

    What a crash left half-written has a different name.
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
    """Whether a directory holds a complete checkpoint or is one.

    Raises:
        FileError: if it cannot be read.
    """
    with naming_file(path, "read"):
        return _is_complete(Path(path)) or bool(steps(Path(path)))


def _is_complete(directory: Path) -> bool:
    state, config = directory / run_files.STATE, directory / run_files.STEP_CONFIG
    return (state / "_METADATA").is_file() and config.is_dir()


def _read_step(directory: Path) -> CheckpointContents:
    # Imported here because it imports JAX, which other files of weights do not need.
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
