"""Checkpoints of a run: the state, the config it was made by and the position in the data.

    WORKDIR/checkpoints/<step>/state    arrays: step, params, batch_stats, opt_state, ema_params
                               config   JSON of the whole experiment
                               data     JSON {"iterator": the data iterator's state as text}

Orbax writes in the background, to a temporary name that is renamed when all is on disk: a crash
leaves the last good checkpoint as the latest one.
"""

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any

import orbax.checkpoint as ocp

from diffdepth_jax.training.state import TrainState

FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save (besides the end of the run), and how many of the newest to keep."""

    every_steps: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise ValueError(
                f"every_steps and keep must be at least 1, not {self.every_steps} and {self.keep}"
            )


class Checkpointer:
    """Saves and restores the checkpoints of one run directory; a context manager."""

    def __init__(self, workdir: Path, keep: int) -> None:
        self.directory = workdir.resolve() / FOLDER
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
            item_names=("state", "config", "data"),
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, config: dict[str, Any], data: bytes) -> None:
        """Copies the state to the host and returns; a thread writes it while training goes on."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                config=ocp.args.JsonSave(config),
                # Latin-1 gives every byte a character, and JSON states stay readable.
                data=ocp.args.JsonSave({"iterator": data.decode("latin-1")}),
            ),
        )

    def config(self, step: int) -> dict[str, Any]:
        """The experiment that wrote the checkpoint of `step`."""
        return self._manager.restore(
            step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
        ).config

    def restore(self, step: int, abstract_state: TrainState) -> tuple[TrainState, bytes]:
        """Reads a checkpoint, placed as `abstract_state` says; also the data iterator's state."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract_state), data=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.data["iterator"].encode("latin-1")

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._manager.close()  # Waits for saves under way.
