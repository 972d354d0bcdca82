"""Training, from a config to evaluated depth, in numbered sections from top to bottom."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffdepth_jax import config as config_lib
from diffdepth_jax import inference
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.evaluation.run.checkpoint import settings
from diffdepth_jax.evaluation.run.checks import check_data
from diffdepth_jax.inference.load import return_freed_memory
from diffdepth_jax.models.networks import network
from diffdepth_jax.models.networks.network import Denoises, expected_variables
from diffdepth_jax.processes import Processes
from diffdepth_jax.training import (
    background,
    debugging,
    distributed,
    experiment,
    pictures,
    pretrained,
    sharding,
    step_counts,
)
from diffdepth_jax.training import step as step_lib
from diffdepth_jax.training import workdir as workdirs
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.experiment import Experiment
from diffdepth_jax.training.interruption import Interruption
from diffdepth_jax.training.periodic import Evaluations
from diffdepth_jax.training.run import Run
from diffdepth_jax.training.state import TrainState
from diffdepth_jax.training.teacher import Teacher, TeacherConfig
from diffdepth_jax.weights import orbax

# Fields that may change when a run continues from its checkpoint: they do not change a training
# step, except for rounding (and for which frame replaces an unreadable one).
_CHANGEABLE = (
    "num_steps",
    "mesh",
    "model.remat",
    "model.conv_gradient",
    "model.sampler_form",
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
    """Trains to the last step, resuming if possible, then evaluates and draws figures.

    Args:
        config: the fields of `experiment.Experiment`, as set by `configs/*.py`.
        workdir: the run's directory, see `train`. Also receives `metrics.json`, `per_image.csv`,
            `curves.png`, `denoising.png` and `predictions.png`.
        allow_config_changes, debug_nans: as in `train`.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: for an unusable config or data, before anything is compiled; and as in `train`.
        Interrupted: as in `train`.
    """
    if not os.fspath(workdir):
        raise ConfigError("workdir is empty: name the directory of the run")
    exp = experiment.from_mapping(config)
    workdir = Path(workdir).expanduser()
    processes = distributed.processes()
    with processes.agreed():
        check_data(exp.data, exp.evaluation, labelled=not exp.labels_online)
    with workdirs.held(workdir, processes):
        step = _train(exp, workdir, processes, allow_config_changes, debug_nans)
        with Evaluations(exp, workdir, step, processes) as evaluations:
            # Load the checkpoint as any user would, independent of training state.
            trained = inference.load(workdir)
            result = evaluations.run(step, trained)
        with processes.agreed():
            if processes.is_first:
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

    Every process of a run (`distributed.start`) calls this with a shared `workdir`. Each reads its
    part of every batch and saves what its devices hold; the first process writes the rest.

    Writes `config.json`, `checkpoints/`, `metrics.csv` and `tensorboard/`; if the experiment
    includes periodic evaluations, also the files of `periodic.Evaluations`.

    Args:
        exp: the experiment.
        workdir: the run's directory.
        allow_config_changes: continue even if `exp` differs from the checkpoint's config.
        debug_nans: find the operation that made a loss or gradient non-finite. Steps then keep
            their initial state, which takes more memory.

    Returns:
        The step of the latest checkpoint.

    Raises:
        ConfigError: if the checkpoints in `workdir` have a different config or different arrays;
            names the fields or arrays.
        DivergedError: if the loss or a gradient becomes non-finite; names step, images and last
            good checkpoint.
        DataError, FileError: if data cannot be read or results cannot be written, or another
            process trains in `workdir`; during training, names the last good checkpoint.
        Interrupted: after SIGTERM or SIGINT to any process, once the state is saved.
    """
    processes = distributed.processes()
    with workdirs.held(workdir, processes):
        return _train(exp, workdir, processes, allow_config_changes, debug_nans)


def _train(
    exp: Experiment,
    workdir: Path,
    processes: Processes,
    allow_config_changes: bool,
    debug_nans: bool,
) -> int:
    """`train` in a directory that this run has locked."""
    if debug_nans and processes.count > 1:
        raise ConfigError(
            f"debug_nans needs a single process, not {processes.count}: to find the operation, "
            "continue from the last checkpoint in one process"
        )

    if exp.distils_sampler and not exp.has_teacher:
        raise ConfigError(
            f"the objective {exp.objective.name!r} learns from a trained sampler: set "
            "config.teacher.checkpoint to it (and config.init.network, to start from it)"
        )

    # 1. Mesh: all devices; each gets a part of every batch and, if requested, of the state.
    mesh = sharding.make_mesh(exp.mesh)
    sharding.check_batch_size(exp.batch_size, mesh, exp.accumulate)

    # 2. Input: an endless stream of batches; each process reads its part.
    with processes.agreed():
        iterator = experiment.train_iterator(exp, (processes.index, processes.count))

    # 3. Step: (state, batch, key) -> (state, scalars), compiled once.
    training_step = step_lib.build(exp, mesh)
    _check_network(training_step.model, exp)
    train_step = training_step.compiled(donate=not debug_nans)
    if debug_nans:
        train_step = debugging.Watched(train_step, training_step.function)

    # 4. Teacher, where labels are computed during training.
    teacher = None
    if exp.has_teacher:
        teacher = Teacher(
            cast(TeacherConfig, exp.teacher),
            exp.model,
            mesh,
            dtype=jnp.dtype(exp.compute_dtype),
            depth_range=exp.data.train.depth_range,
            seed=exp.seed,
            trajectories=exp.distils_sampler,
            step_counts=step_counts.of(exp),
            processes=processes,
        )

    # 5. Checkpoint: start from scratch or from the latest checkpoint.
    init_key, train_key = jax.random.split(jax.random.key(exp.seed))
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        stack.enter_context(contextlib.closing(iterator))
        first_step = processes.from_first(lambda: orbax.latest_step(workdir) or 0)
        with processes.agreed():  # a file may be missing on one machine
            if teacher and first_step and not allow_config_changes:
                teacher.check_same(workdir)
            loaded = {} if first_step else pretrained.load(exp.init, exp.model)
        stack.enter_context(background.reported_once())
        checkpointer = stack.enter_context(Checkpointer(workdir, exp.checkpoint.keep, processes))
        if first_step:
            if not allow_config_changes:
                _check_unchanged(checkpointer.config(first_step), exp, workdir)
            abstract = sharding.abstract(training_step.abstract_state, training_step.placed)
            state, position, log_state = checkpointer.restore(first_step, abstract)
            iterator.set_state(position)
        else:
            state, log_state = training_step.initial_state(init_key, loaded), {}

        # 6. Around the steps: logging, checkpoints, periodic evaluations, and stopping.
        def as_trained(state: TrainState) -> inference.DepthModel:
            params = state.ema_params or state.params
            variables = {"params": params, "batch_stats": state.batch_stats}
            variables = sharding.on_one_device(variables, mesh)
            return inference.DepthModel(
                network.of(exp.model).build(exp.model), variables, exp.model
            )

        run = Run(
            exp,
            workdir,
            first_step,
            processes=processes,
            agreement=sharding.Agreement(mesh),
            iterator=iterator,
            checkpointer=checkpointer,
            interruption=interruption,
            as_trained=as_trained,
            log_state=log_state,
            explain=train_step.explain if debug_nans else None,  # type: ignore[attr-defined]
        )

        # 7. Loop.
        with run:
            if teacher and processes.is_first:
                teacher.note(workdir)
            run.before_steps(state)
            for step in range(first_step + 1, exp.num_steps + 1):
                arrays = dict(next(iterator))
                ids = arrays.pop("id")
                batch = sharding.shared_batch(arrays, mesh)
                if teacher:
                    batch = teacher.label(batch, step)
                state, scalars = train_step(state, batch, train_key)
                if step == first_step + 1:  # compiled by now
                    return_freed_memory()
                run.after_step(step, state, scalars, ids)

    # 8. Decoder statistics for the other numbers of steps, if several were trained.
    with processes.agreed():
        if processes.is_first:
            step_counts.recalibrate(exp, workdir)
    return max(first_step, exp.num_steps)


def _check_network(model: nn.Module, exp: Experiment) -> None:
    """Raises ConfigError if the network does not support what the evaluation needs, or images of
    the training crop's size.

    Networks that accept any size are also checked if the size is not a recommended one.
    """
    untrained = inference.DepthModel(model, {}, exp.model)
    settings(untrained, exp.evaluation)  # the evaluation would report it too late
    untrained.check_num_inference_steps(exp.evaluation.num_inference_steps)
    crop, spec = exp.data.train.augmentation.crop, exp.model.input_spec
    if isinstance(model, Denoises) or not any(side % spec.multiple for side in crop):
        return
    image = jax.ShapeDtypeStruct((1, *crop, 3), jnp.float32)
    try:
        jax.eval_shape(model.apply, expected_variables(model), image)
    except ValueError as error:
        near = spec.nearest(*crop)
        raise ConfigError(
            f"config.data.train.augmentation.crop is {crop}: {error}; for example, use {near}"
        ) from error


def _check_unchanged(saved: Mapping[str, Any], exp: Experiment, workdir: Path) -> None:
    # Parsed again, so that fields newer than the checkpoint get their defaults.
    try:
        saved = config_lib.to_mapping(experiment.from_mapping(saved))
    except ConfigError as error:
        raise ConfigError(
            f"{workdir} holds checkpoints whose config cannot be read ({error}): use another "
            "workdir, or pass --allow_config_changes"
        ) from error
    harmless = tuple(f"config.{name}{end}" for name in _CHANGEABLE for end in (".", ":"))
    lines = [
        line
        for line in config_lib.differences(saved, config_lib.to_mapping(exp))
        if not line.startswith(harmless)
    ]
    if lines:
        raise ConfigError(
            f"{workdir} holds checkpoints of a different config ({'; '.join(lines)}): use another "
            "workdir or the original config, or pass --allow_config_changes"
        )
