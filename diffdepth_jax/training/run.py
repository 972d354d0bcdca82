"""What happens around the steps of a run: logging, checkpoints, evaluations, and stopping."""

import json
import signal
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from diffdepth_jax import atomic, run_files
from diffdepth_jax import config as config_lib
from diffdepth_jax.data.pipeline import TrainIterator
from diffdepth_jax.errors import DivergedError, FileError, UserError
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.processes import Processes
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.experiment import Experiment
from diffdepth_jax.training.interruption import Interruption
from diffdepth_jax.training.logging import RunLog
from diffdepth_jax.training.periodic import Evaluations
from diffdepth_jax.training.sharding import Agreement
from diffdepth_jax.training.state import TrainState


class Run:
    """Called after every step of a run; a context manager.

    A `UserError` or OSError that propagates names the last good checkpoint.

    Args:
        exp: the experiment.
        workdir: the run's directory.
        first_step: step of the checkpoint that the run continues from; 0 for none.
        processes: the run's processes; the first writes.
        agreement: lets the processes agree on when to stop.
        iterator: training data iterator, whose position is saved.
        checkpointer, interruption: context managers that have been entered.
        as_trained: `state -> DepthModel`, for evaluations.
        log_state: the log's state from the checkpoint; empty if there is none.
        explain: `() -> str`, says where the last step's NaN came from. If given, every step is
            waited for.
    """

    def __init__(
        self,
        exp: Experiment,
        workdir: Path,
        first_step: int,
        *,
        processes: Processes,
        agreement: Agreement,
        iterator: TrainIterator,
        checkpointer: Checkpointer,
        interruption: Interruption,
        as_trained: Callable[[TrainState], DepthModel],
        log_state: Mapping[str, Any],
        explain: Callable[[], str] | None = None,
    ) -> None:
        self._exp, self._workdir, self._first_step = exp, workdir, first_step
        self._mapping = config_lib.to_mapping(exp)
        self._processes, self._agreement = processes, agreement
        self._iterator = iterator
        self._checkpointer = checkpointer
        self._interruption = interruption
        self._as_trained = as_trained
        self._log_state = log_state
        self._explain = explain
        self._num_skipped = len(iterator.skipped)
        self._open_files = ExitStack()

    def __enter__(self) -> "Run":
        with self._open_files:
            self._processes.from_first(self._note_config)
            self._evaluations = self._open_files.enter_context(
                Evaluations(self._exp, self._workdir, self._first_step, self._processes)
            )
            self._checkpointer.keep_best(self._evaluations.best_step())
            with self._processes.agreed():
                self._log = self._open_files.enter_context(
                    RunLog(
                        self._workdir,
                        first_step=self._first_step,
                        num_steps=self._exp.num_steps,
                        every_steps=self._exp.logging.every_steps,
                        state=self._log_state,
                        writes=self._processes.is_first,
                    )
                )
            self._open_files = self._open_files.pop_all()
        return self

    def _note_config(self) -> None:
        config = json.dumps(self._mapping, indent=2) + "\n"
        atomic.write_text(self._workdir / run_files.CONFIG, config)
        if self._first_step:
            self._note_skipped()  # without those after the checkpoint

    def before_steps(self, state: TrainState) -> None:
        """Repeats the evaluation if the run was stopped during it."""
        step = self._first_step
        if self._evaluations.is_due(step) and not self._evaluations.has(step):
            self._evaluate(step, state)

    def after_step(
        self, step: int, state: TrainState, scalars: Mapping[str, Any], ids: Collection[str]
    ) -> None:
        """Logs a step; saves, evaluates and stops when due.

        Only waits for the device then, and for the log, which lags a few steps behind.

        Args:
            step: counted from 1; `state` is the state after it.
            scalars: the step's scalars by name.
            ids: ids of its images.
        """
        if self._processes.is_first and len(self._iterator.skipped) > self._num_skipped:
            self._note_skipped()
        self._log.add(step, scalars, ids)
        if self._explain:
            self._log.flush()
        self._checkpointer.check()
        is_last = step == self._exp.num_steps
        evaluating = self._evaluations.is_due(step)
        saving = evaluating or is_last or step % self._exp.checkpoint.every_steps == 0
        number = self._agreement.greatest(self._interruption.requested or 0, now=saving)
        stopping = number > 0
        if stopping:
            self._interruption.requested = signal.Signals(number)
        if stopping or saving:
            self._log.flush()  # never save a state corrupted by a failed step
            self._share_skipped()
            position, log = self._iterator.get_state(), self._log.get_state()
            self._checkpointer.save(step, state, self._mapping, position, log)
        if stopping or is_last:
            self._checkpointer.wait()
        if stopping:
            self._interruption.answer(saved(step, self._workdir))
        if evaluating:
            self._evaluate(step, state)

    def _evaluate(self, step: int, state: TrainState) -> None:
        """Evaluates a saved state."""
        self._checkpointer.wait()
        trained = self._as_trained(state)
        with self._interruption.at_once(saved(step, self._workdir)):
            self._evaluations.run(step, trained)
        self._checkpointer.keep_best(self._evaluations.best_step())

    def _share_skipped(self) -> None:
        """Shares unreadable frames between all processes."""
        if self._processes.count > 1:
            for skipped in self._processes.gather(self._iterator.skipped):
                self._iterator.skipped.update(skipped)
            if self._processes.is_first and len(self._iterator.skipped) > self._num_skipped:
                self._note_skipped()

    def _note_skipped(self) -> None:
        """Lists the training frames that could not be read, if any."""
        skipped, path = dict(self._iterator.skipped), self._workdir / run_files.SKIPPED
        self._num_skipped = len(skipped)
        if skipped or path.exists():
            record = {"num_skipped": len(skipped), "skipped": skipped}
            atomic.write_text(path, json.dumps(record, indent=2) + "\n")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open_files.__exit__(kind, error, traceback)
        if isinstance(error, UserError | OSError):
            message = str(error)
            if self._explain and isinstance(error, DivergedError):
                message += f": {self._explain()}"
            step = self._checkpointer.latest_step()
            good = "none" if step is None else f"step {step}"
            message += f"; last good checkpoint in {self._checkpointer.directory}: {good}"
            # Errors from the system about a file are reported in one line too.
            raise (type(error) if isinstance(error, UserError) else FileError)(message) from error


def saved(step: int, workdir: Path) -> str:
    """How to continue a run that was stopped after `step`."""
    return f"step {step} is saved in {workdir}; run the same command to resume"
