"""Checkpoints of a run: the state, the config it was made by and the position in the data.

    WORKDIR/checkpoints/<step>/state    arrays: step, params, batch_stats, opt_state, ema_params
                               config   JSON of the whole experiment
                               data     JSON {"iterator": the data iterator's state as text,
                                              "log": the sums of metrics.csv's next row}

Orbax writes in the background, to a temporary name that is renamed when all is on disk: a crash or
a full disk leaves the last good checkpoint as the latest one, and the next run removes the rest.
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

from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.evaluation import metrics
from diffdepth_jax.training.state import TrainState
from diffdepth_jax.weights import orbax, rules

FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save (besides evaluations and the end of the run), and what to keep.

    Attributes:
      every_steps: steps between two checkpoints.
      keep: how many of the newest to keep.
      best_metric: a name of `evaluation.metrics`; the checkpoint that periodic evaluation
        (`evaluation.every_steps`) finds best by it is kept too. None keeps none for its metrics.
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

    Whatever keeps a checkpoint from being written is raised as an OSError that names the directory
    and the cause: from `check`, the next `save`, `wait`, or on leaving.
    """

    def __init__(self, workdir: Path, keep: int) -> None:
        self.directory = workdir.resolve() / FOLDER
        # What a crash left unfinished goes now: Orbax's own cleaning goes on in a thread, which
        # fails loudly where the program ends soon after, as it does of a mistake.
        for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path)
        self._policy = _NewestAndBest(keep)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(preservation_policy=self._policy),
            item_names=("state", "config", "data"),
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None; waits for a save under way."""
        with contextlib.suppress(OSError):
            self.wait()
        return orbax.latest_step(self.directory)

    def keep_best(self, step: int | None) -> None:
        """From the next save on, keeps the checkpoint of `step` besides the newest."""
        self._policy.best = step

    def save(
        self,
        step: int,
        state: TrainState,
        config: Mapping[str, Any],
        data: bytes,
        log: Mapping[str, Any],
    ) -> None:
        """Copies the state to the host and returns; a thread writes it while training goes on."""
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    config=ocp.args.JsonSave(config),
                    # Latin-1 gives every byte a character, and JSON states stay readable.
                    data=ocp.args.JsonSave({"iterator": data.decode("latin-1"), "log": log}),
                ),
            )

    def check(self) -> None:
        """Raises OSError if a save in the background has failed; costs a microsecond."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when no save is under way."""
        with self._writing():
            self._manager.wait_until_finished()

    def config(self, step: int) -> dict[str, Any]:
        """The experiment that wrote the checkpoint of `step`."""
        return self._manager.restore(
            step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
        ).config

    def restore(
        self, step: int, abstract_state: TrainState
    ) -> tuple[TrainState, bytes, dict[str, Any]]:
        """Reads a checkpoint, placed as `abstract_state` says; the state, `data` and `log` of it.

        Raises:
          ConfigError: if it holds other arrays than `abstract_state`; names them.
        """
        path = self.directory / str(step) / "state"
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            saved = handler.metadata(path).tree
        try:
            rules.check(_by_path(saved), _by_path(abstract_state), f"{path} is of another config")
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

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise all kinds.
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(f"no checkpoint could be written to {self.directory}: {cause}") from error

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Waits for saves under way; their failure is told unless something else went wrong first.
        with contextlib.suppress(*[OSError] if error else []), self._writing():
            self._manager.close()


class _NewestAndBest:
    """Orbax's question which checkpoints to preserve, answered."""

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
    """Leaves by their path, which is the same for a dataclass and for the dict it is saved as."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
