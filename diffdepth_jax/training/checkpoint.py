"""Checkpoints of a run: state, config and position in the data.

    WORKDIR/checkpoints/<step>/state    arrays: step, params, batch_stats, opt_state, ema_params
                               config   JSON of the whole experiment
                               data     JSON {"iterator": the data iterator's state as text,
                                              "log": the sums for metrics.csv's next row}
                               checksums.json  for all these files

Orbax writes in the background, under a temporary name that is renamed when everything is on disk:
after a crash or a full disk the last good checkpoint is still the latest, and the next run removes
the leftovers. Other damage, such as a truncated copy, is reported before training starts.
"""

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from diffdepth_jax import run_files
from diffdepth_jax.errors import ConfigError, FileError, WeightsError
from diffdepth_jax.evaluation import metrics
from diffdepth_jax.processes import Processes
from diffdepth_jax.training.state import TrainState
from diffdepth_jax.weights import checksums, orbax, rules

_UNFINISHED = "*.orbax-checkpoint-tmp*"  # Orbax's suffix for a step that it is still writing


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, besides at evaluations and at the end of the run, and what to keep.

    Attributes:
        every_steps: steps between checkpoints.
        keep: number of newest checkpoints to keep.
        best_metric: a metric of `evaluation.metrics`; the checkpoint that is best by it in periodic
            evaluation (`evaluation.every_steps`) is kept too. None to keep no such checkpoint.
    """

    every_steps: int = 1000
    keep: int = 2
    best_metric: str | None = "abs_rel"

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise ValueError(
                f"every_steps and keep must be at least 1, not {self.every_steps} and {self.keep}"
            )
        known = list(dict.fromkeys(itertools.chain(*metrics.SETS.values())))
        if self.best_metric is not None and self.best_metric not in known:
            raise ValueError(
                f"best_metric is {self.best_metric!r}; it must be None or one of {', '.join(known)}"
            )


class Checkpointer:
    """Saves and restores the checkpoints of one run directory; a context manager.

    If a checkpoint cannot be written, `check`, the next `save`, `wait` or exiting the context
    raises a FileError that names the directory and the cause. A checkpoint only counts as saved
    once it has been verified.

    Several processes save and restore together, each the parts held by its devices; the first
    manages the directory.

    Raises:
        FileError: if the directory cannot be created or read.
        WeightsError: if the newest checkpoint is incomplete, because training could neither
            continue from it nor save before reaching that step; names the fault and an older
            complete one.
    """

    def __init__(self, workdir: Path, keep: int, processes: Processes | None = None) -> None:
        self.directory = workdir.resolve() / run_files.CHECKPOINTS
        self._processes = processes or Processes()
        self._processes.from_first(self._prepare)
        self._policy = _NewestAndBest(keep)
        self._saving: int | None = None
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._policy,
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._note_checksums),
                ),
                item_names=tuple(orbax.ITEMS),
            )

    def _prepare(self) -> None:
        # Remove leftovers of a crash now: Orbax cleans up in a thread, which fails noisily if the
        # program ends soon after, for example because of a user error.
        with self._writing():
            for path in self.directory.glob(_UNFINISHED):
                shutil.rmtree(path)
        self._refuse_damaged()

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None; waits for a save in progress."""
        with contextlib.suppress(OSError):
            self.wait()
        # A save that failed verification does not count.
        good = orbax.steps(self.directory).keys() - {self._saving}
        return max(good, default=None)

    def keep_best(self, step: int | None) -> None:
        """From the next save on, also keeps the checkpoint of `step`."""
        self._policy.best = step

    def save(
        self,
        step: int,
        state: TrainState,
        config: Mapping[str, Any],
        data: bytes,
        log: Mapping[str, Any],
    ) -> None:
        """Copies the state to the host and returns; a thread writes it while training continues."""
        self.wait()
        with self._writing():
            self._saving = step
            begun = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    config=ocp.args.JsonSave(config),
                    # Latin-1 maps every byte to a character, and keeps JSON states readable.
                    data=ocp.args.JsonSave({"iterator": data.decode("latin-1"), "log": log}),
                ),
            )
            if not begun:  # Orbax only saves steps newer than all others
                self._saving = None
                raise OSError(f"step {step} is not newer than the existing checkpoints")

    def check(self) -> None:
        """Raises FileError if a save in the background has failed; costs a microsecond."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when no save is in progress."""
        with self._writing():
            self._manager.wait_until_finished()
            self._verify()

    def config(self, step: int) -> dict[str, Any]:
        """The config of the experiment that wrote the checkpoint of `step`.

        Raises:
            WeightsError: if it is not a config.
        """
        return orbax.read_config(self.directory / str(step))

    def restore(
        self, step: int, abstract_state: TrainState
    ) -> tuple[TrainState, bytes, dict[str, Any]]:
        """Reads a checkpoint: the state, sharded like `abstract_state`, `data` and `log`.

        Raises:
            ConfigError: if its arrays differ from `abstract_state`; names them.
            WeightsError: if it is damaged; names an older complete one.
        """
        directory = self.directory / str(step)
        with orbax.naming_damage(directory, tuple(orbax.ITEMS)):
            with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
                saved = handler.metadata(directory / run_files.STATE).tree
            try:
                title = f"{directory / run_files.STATE} has a different config"
                rules.check(_by_path(saved), _by_path(abstract_state), title)
            except WeightsError as error:
                raise ConfigError(str(error)) from error
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state), data=ocp.args.JsonRestore()
                ),
            )
            data = restored.data["iterator"].encode("latin-1")
            return restored.state, data, restored.data.get("log", {})

    def _refuse_damaged(self) -> None:
        """Verifies the newest step's directory, even if it is incomplete.

        Incomplete older ones come from a crash during a deletion, which Orbax completes.
        """
        with self._writing():
            steps = [path for path in self.directory.glob("*") if path.name.isdecimal()]
        if not steps:
            return
        newest, items = max(steps, key=lambda path: int(path.name)), tuple(orbax.ITEMS)
        if found := orbax.faults(newest, items):
            raise orbax.damaged(newest, items, "; ".join(found[:3]))

    def _note_checksums(self) -> None:
        """Called by Orbax's thread when a step's files are written, before they are renamed."""
        (directory,) = self.directory.glob(f"{self._saving}{_UNFINISHED[1:]}")
        checksums.write(directory)

    def _verify(self) -> None:
        """Verifies the files of the last save; their contents were read for the checksums."""
        step = self._saving
        if step is None:
            return
        if not self._processes.is_first:  # other machines may see the files slightly later
            self._saving = None
            return
        directory = self.directory / str(step)
        found = orbax.faults(directory, contents=False)
        if not (directory / run_files.CHECKSUMS).exists():
            found.append(f"{run_files.CHECKSUMS} is missing")
        if found:
            raise OSError(f"step {step} is incomplete ({'; '.join(found[:3])})")
        self._saving = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # TensorStore reports a full disk as a ValueError, Orbax some damage as a plain
            # Exception.
            if not isinstance(error, OSError | ValueError) and type(error) is not Exception:
                raise
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FileError(
                f"no checkpoint could be written to {self.directory}: {cause}"
            ) from error

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Waits for saves in progress; their failure is raised unless another error came first.
        with contextlib.suppress(*[Exception] if error else []), self._writing():
            self._manager.close()
            self._verify()


class _NewestAndBest:
    """Tells Orbax which checkpoints to keep."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        oldest = len(checkpoints) - self.keep
        return [
            position >= oldest or checkpoint.step == self.best
            for position, checkpoint in enumerate(checkpoints)
        ]


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by path; paths are equal for a dataclass and the dict that it is saved as."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
