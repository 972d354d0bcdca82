"""Training from a config to evaluated depth, in numbered sections from top to bottom."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from diffdepth_jax import config as config_lib
from diffdepth_jax import inference, registry
from diffdepth_jax.data import pipeline
from diffdepth_jax.training import evaluation, experiment, optimizer, pretrained, sharding
from diffdepth_jax.training import state as state_lib
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.experiment import Experiment
from diffdepth_jax.training.logging import RunLog

# What a run may change when it continues from its checkpoint: none of it changes a training step.
_CHANGEABLE = (
    "num_steps",
    "evaluation",
    "checkpoint",
    "logging",
    "data.evaluation",
    "data.baseline_frames",
    "data.train.cache",
    "data.train.num_workers",
    "data.train.num_threads",
)


def train_and_evaluate(config: Mapping[str, Any], workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains, or continues to, the last step; then evaluates and draws pictures.

    Args:
      config: the fields of `experiment.Experiment`, as `configs/*.py` give them.
      workdir: the run's directory; see `train`. Also gets `metrics.json`, `per_image.csv`,
        `curves.png`, `denoising.png` and `predictions.png`.

    Returns:
      What `metrics.json` holds.

    Raises:
      ConfigError: for a config that cannot be used, before anything is compiled.
      FloatingPointError: as `train` does.
    """
    exp = experiment.from_mapping(config)
    workdir = Path(workdir).expanduser()
    train(exp, workdir)
    # The checkpoint as anybody would load it, with nothing left over from training.
    trained = inference.load(workdir)
    result = evaluation.evaluate(exp, trained, workdir)
    evaluation.draw(exp, trained, workdir)
    return result


def train(exp: Experiment, workdir: Path) -> None:
    """Trains to the last step, from the latest checkpoint in `workdir` if there is one.

    Writes `config.json`, `checkpoints/`, `metrics.csv` and `tensorboard/`.

    Raises:
      ConfigError: if the checkpoints in `workdir` are of another config; names the fields.
      FloatingPointError: if the loss or a gradient stops being finite; names step, images and the
        last good checkpoint.
    """
    # 1. Mesh: all devices; every one gets its share of each batch.
    mesh = sharding.make_mesh()
    sharding.check_batch_size(exp.batch_size, mesh)
    replicated, over_batch = sharding.replicated(mesh), sharding.over_batch(mesh)

    # 2. Input: this process's part of an endless stream of batches.
    network = registry.module("network", exp.model.name)
    iterator = pipeline.train_iterator(
        exp.data.train,
        exp.batch_size,
        exp.seed,
        network.INPUT,
        shard=(jax.process_index(), jax.process_count()),
    )

    # 3. Model: its variables are born on all devices.
    model = network.build(exp.model)
    schedule = optimizer.learning_rate_schedule(exp.optimizer, exp.num_steps)
    transformation = optimizer.build(exp.optimizer, schedule)
    init_key, train_key = jax.random.split(jax.random.key(exp.seed))

    def init(key: jax.Array, loaded: Mapping[str, Any]) -> state_lib.TrainState:
        variables = pretrained.overlay(model.init_variables(key), loaded)
        return state_lib.create(variables, transformation, exp.ema_decay > 0)

    # 4. Step: (state, batch, key) -> (state, scalars), compiled once.
    objective = registry.module("objective", exp.objective.name)
    train_step = jax.jit(
        state_lib.make_train_step(
            objective.build(exp.objective, model), transformation, schedule, exp.ema_decay
        ),
        in_shardings=(replicated, over_batch, replicated),
        out_shardings=(replicated, replicated),
        donate_argnums=0,
    )

    # 5. Checkpoint: start afresh, or where the latest one was.
    mapping = config_lib.to_mapping(exp)
    workdir.mkdir(parents=True, exist_ok=True)
    with Checkpointer(workdir, exp.checkpoint.keep) as checkpointer:
        first_step = checkpointer.latest_step() or 0
        if first_step:
            _check_unchanged(checkpointer.config(first_step), mapping, workdir)
            abstract = sharding.abstract(jax.eval_shape(init, init_key, {}), replicated)
            state, position = checkpointer.restore(first_step, abstract)
            iterator.set_state(position)
        else:
            loaded = pretrained.load(exp.init, exp.model)
            state = jax.jit(init, out_shardings=replicated)(init_key, loaded)
        _write_json(workdir / "config.json", mapping)

        # 6. Loop. Nothing in it waits for the device but the log, which is a few steps behind.
        saved_step = first_step
        with RunLog(
            workdir,
            first_step=first_step,
            num_steps=exp.num_steps,
            every_steps=exp.logging.every_steps,
        ) as log:
            try:
                for step in range(first_step + 1, exp.num_steps + 1):
                    batch = dict(next(iterator))
                    ids = batch.pop("id")
                    state, scalars = train_step(state, sharding.put_batch(batch, mesh), train_key)
                    log.add(step, scalars, ids)
                    if step % exp.checkpoint.every_steps == 0 or step == exp.num_steps:
                        log.flush()  # A state that a failed step has spoilt is never saved.
                        checkpointer.save(step, state, mapping, iterator.get_state())
                        saved_step = step
            except FloatingPointError as error:
                last = f"step {saved_step}" if saved_step else "none"
                raise FloatingPointError(
                    f"{error}; last good checkpoint in {checkpointer.directory}: {last}"
                ) from error
        iterator.close()


def _check_unchanged(saved: Mapping[str, Any], mapping: Mapping[str, Any], workdir: Path) -> None:
    # Read anew, so that a field which is younger than the checkpoint counts with its default.
    saved = config_lib.to_mapping(experiment.from_mapping(saved))
    lines = [
        line
        for line in config_lib.differences(saved, mapping)
        if not line.startswith(tuple(f"config.{name}" for name in _CHANGEABLE))
    ]
    if lines:
        raise config_lib.ConfigError(
            f"{workdir} holds checkpoints of another config ({'; '.join(lines)}): "
            "use another workdir, or the config that it was started with"
        )


def _write_json(path: Path, mapping: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(mapping, indent=2) + "\n")
    os.replace(temporary, path)
