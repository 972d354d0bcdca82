"""Training from a config to evaluated depth, in numbered sections from top to bottom."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffdepth_jax import atomic, inference, registry
from diffdepth_jax import config as config_lib
from diffdepth_jax.data import pipeline
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.training import (
    debugging,
    experiment,
    optimizer,
    pictures,
    pretrained,
    sharding,
)
from diffdepth_jax.training import state as state_lib
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.experiment import Experiment
from diffdepth_jax.training.interruption import Interruption
from diffdepth_jax.training.logging import RunLog
from diffdepth_jax.training.periodic import Evaluations
from diffdepth_jax.weights import orbax

SKIPPED_FILE = "skipped.json"

# What a run may change when it continues from its checkpoint: none of it changes a training step,
# but for the rounding of its sums (and for what stands in for a frame that cannot be read).
_CHANGEABLE = (
    "num_steps",
    "mesh",
    "model.remat",
    "model.conv_gradient",
    "evaluation",
    "checkpoint",
    "logging",
    "data.evaluation",
    "data.evaluation_limit",
    "data.baseline_frames",
    "data.on_error",
    "data.train.cache",
    "data.train.num_workers",
    "data.train.num_threads",
)


def train_and_evaluate(
    config: Mapping[str, Any],
    workdir: str | os.PathLike,
    *,
    allow_config_changes: bool = False,
    debug_nans: bool = False,
) -> dict[str, Any]:
    """Trains, or continues to, the last step; then evaluates and draws pictures.

    Args:
      config: the fields of `experiment.Experiment`, as `configs/*.py` give them.
      workdir: the run's directory; see `train`. Also gets `metrics.json`, `per_image.csv`,
        `curves.png`, `denoising.png` and `predictions.png`.
      allow_config_changes, debug_nans: as for `train`.

    Returns:
      What `metrics.json` holds.

    Raises:
      ConfigError: for a config that cannot be used, before anything is compiled.
      FloatingPointError, OSError, Interrupted: as `train` does.
    """
    exp = experiment.from_mapping(config)
    workdir = Path(workdir).expanduser()
    step = train(exp, workdir, allow_config_changes=allow_config_changes, debug_nans=debug_nans)
    # The checkpoint as anybody would load it, with nothing left over from training.
    trained = inference.load(workdir)
    result = Evaluations(exp, workdir, step).run(step, trained)
    pictures.draw_denoising(exp, trained, workdir)
    pictures.draw_curves(workdir)
    return result


def train(
    exp: Experiment,
    workdir: Path,
    *,
    allow_config_changes: bool = False,
    debug_nans: bool = False,
) -> int:
    """Trains to the last step, from the latest checkpoint in `workdir` if there is one.

    One process drives all devices.

    Writes `config.json`, `checkpoints/`, `metrics.csv` and `tensorboard/`; where the experiment
    asks for evaluations on the way, also what `evaluation.Evaluations` writes.

    Args:
      exp: the experiment.
      workdir: the run's directory.
      allow_config_changes: go on even where `exp` is not what the checkpoint was made by.
      debug_nans: of a loss or gradient that is not finite, find the operation. Steps then keep
        the state they start from: more memory.

    Returns:
      The step of the latest checkpoint.

    Raises:
      ConfigError: if the checkpoints in `workdir` are of another config; names the fields. If they
        hold other arrays, names these.
      FloatingPointError: if the loss or a gradient stops being finite; names step, images and the
        last good checkpoint.
      OSError: if data cannot be read or results be written; names the last good checkpoint.
      RuntimeError: in one of several processes (`jax.distributed`): each would write the log, the
        config and the results of the same directory.
      Interrupted: after SIGTERM or SIGINT, when the state is saved.
    """
    if jax.process_count() > 1:
        raise RuntimeError(
            f"training runs in one process, not in {jax.process_count()}: leave out "
            "jax.distributed.initialize and let one process drive the devices of its machine"
        )

    # 1. Mesh: all devices; every one gets its share of each batch, and of the state if wanted.
    mesh = sharding.make_mesh(exp.mesh)
    sharding.check_batch_size(exp.batch_size, mesh, exp.accumulate)
    replicated, over_batch = sharding.replicated(mesh), sharding.over_batch(mesh)

    # 2. Input: an endless stream of batches.
    network = registry.module("network", exp.model.name)
    iterator = pipeline.train_iterator(
        exp.data.train,
        exp.batch_size,
        exp.seed,
        exp.model.input_spec,
        on_error=exp.data.on_error,
    )

    # 3. Model: its variables are born where they belong.
    model = network.build(exp.model, jnp.dtype(exp.compute_dtype), exp.optimizer.frozen)
    schedule = optimizer.learning_rate_schedule(exp.optimizer, exp.num_steps)
    transformation = optimizer.build(exp.optimizer, schedule)
    init_key, train_key = jax.random.split(jax.random.key(exp.seed))

    def init(key: jax.Array, loaded: Mapping[str, Any]) -> state_lib.TrainState:
        variables = pretrained.overlay(model.init_variables(key), loaded)
        exp.optimizer.check_parts(variables["params"])
        return state_lib.create(variables, transformation, exp.ema_decay > 0, exp.optimizer.frozen)

    abstract = jax.eval_shape(init, init_key, {})
    placed = sharding.of_state(abstract, mesh)

    # 4. Step: (state, batch, key) -> (state, scalars), compiled once.
    objective = registry.module("objective", exp.objective.name)
    step_function = state_lib.make_train_step(
        objective.build(exp.objective, model, exp.num_steps),
        transformation,
        schedule,
        exp.ema_decay,
        exp.accumulate,
        exp.optimizer.frozen,
    )
    train_step = jax.jit(
        step_function,
        in_shardings=(placed, over_batch, replicated),
        out_shardings=(placed, replicated),
        donate_argnums=() if debug_nans else 0,
    )

    # 5. Checkpoint: start afresh, or where the latest one was.
    mapping = config_lib.to_mapping(exp)
    afresh = orbax.latest_step(workdir) is None
    loaded = pretrained.load(exp.init, exp.model) if afresh else {}
    workdir.mkdir(parents=True, exist_ok=True)
    with (
        Interruption() as interruption,
        contextlib.closing(iterator),
        Checkpointer(workdir, exp.checkpoint.keep) as checkpointer,
    ):
        first_step = checkpointer.latest_step() or 0
        if not afresh:
            if not allow_config_changes:
                _check_unchanged(checkpointer.config(first_step), mapping, workdir)
            state, position, log_state = checkpointer.restore(
                first_step, sharding.abstract(abstract, placed)
            )
            iterator.set_state(position)
            _note_skipped(iterator.skipped, workdir)  # Without those after the checkpoint.
        else:
            state, log_state = jax.jit(init, out_shardings=placed)(init_key, loaded), {}
        atomic.write_text(workdir / "config.json", json.dumps(mapping, indent=2) + "\n")

        # 6. Evaluation on the way, of a checkpoint that is on disk.
        evaluations = Evaluations(exp, workdir, first_step)
        checkpointer.keep_best(evaluations.best_step())

        def evaluate(step: int, state: state_lib.TrainState) -> None:
            checkpointer.wait()
            variables = {
                "params": state.ema_params or state.params,
                "batch_stats": state.batch_stats,
            }
            variables = sharding.on_one_device(variables, mesh)
            trained = inference.DepthModel(network.build(exp.model), variables, exp.model)
            with interruption.at_once(_saved(step, workdir)):
                evaluations.run(step, trained)
            checkpointer.keep_best(evaluations.best_step())

        num_skipped = len(iterator.skipped)

        # 7. Loop. Nothing in it waits for the device but the log, which is a few steps behind.
        with RunLog(
            workdir,
            first_step=first_step,
            num_steps=exp.num_steps,
            every_steps=exp.logging.every_steps,
            state=log_state,
        ) as log:
            try:
                if evaluations.is_due(first_step) and not evaluations.has(first_step):
                    evaluate(first_step, state)  # The run was stopped in it.
                for step in range(first_step + 1, exp.num_steps + 1):
                    batch = dict(next(iterator))
                    ids = batch.pop("id")
                    if len(iterator.skipped) > num_skipped:
                        num_skipped = len(iterator.skipped)
                        _note_skipped(iterator.skipped, workdir)
                    before = state if debug_nans else None
                    # The jitted step divides NumPy arrays itself, in a tenth of device_put's time.
                    state, scalars = train_step(state, batch, train_key)
                    log.add(step, scalars, ids)
                    if debug_nans:
                        log.flush()
                    checkpointer.check()
                    stopping = interruption.requested is not None
                    regular = step % exp.checkpoint.every_steps == 0 or step == exp.num_steps
                    if regular or stopping or evaluations.is_due(step):
                        log.flush()  # A state that a failed step has spoilt is never saved.
                        checkpointer.save(
                            step, state, mapping, iterator.get_state(), log.get_state()
                        )
                    if stopping:
                        checkpointer.wait()
                        interruption.answer(_saved(step, workdir))
                    if evaluations.is_due(step):
                        evaluate(step, state)
                checkpointer.wait()
            except (FloatingPointError, OSError) as error:
                message = str(error)
                if debug_nans and isinstance(error, FloatingPointError):
                    message += f": {debugging.find_nan(step_function, before, batch, train_key)}"
                good = checkpointer.latest_step()
                good = "none" if good is None else f"step {good}"
                raise type(error)(
                    f"{message}; last good checkpoint in {checkpointer.directory}: {good}"
                ) from error
    return max(first_step, exp.num_steps)


def _note_skipped(skipped: Mapping[str, str], workdir: Path) -> None:
    """Lists the training frames that could not be read in `skipped.json`, where there are any."""
    path = workdir / SKIPPED_FILE
    if skipped or path.exists():
        record = {"num_skipped": len(skipped), "skipped": dict(skipped)}
        atomic.write_text(path, json.dumps(record, indent=2) + "\n")


def _saved(step: int, workdir: Path) -> str:
    return f"step {step} is saved in {workdir}; the same command goes on from there"


def _check_unchanged(saved: Mapping[str, Any], mapping: Mapping[str, Any], workdir: Path) -> None:
    # Read anew, so that a field which is younger than the checkpoint counts with its default.
    saved = config_lib.to_mapping(experiment.from_mapping(saved))
    harmless = tuple(f"config.{name}{end}" for name in _CHANGEABLE for end in (".", ":"))
    lines = [
        line for line in config_lib.differences(saved, mapping) if not line.startswith(harmless)
    ]
    if lines:
        raise ConfigError(
            f"{workdir} holds checkpoints of another config ({'; '.join(lines)}): use another "
            "workdir or the config that it was started with, or say --allow_config_changes"
        )
