"""The training step of an experiment, built from its config for a mesh of devices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffdepth_jax import registry
from diffdepth_jax.training import optimizer, pretrained, sharding
from diffdepth_jax.training import state as state_lib
from diffdepth_jax.training.experiment import Experiment
from diffdepth_jax.training.state import Scalars, TrainState

Step = Callable[[TrainState, Mapping[str, jax.Array], jax.Array], tuple[TrainState, Scalars]]


@dataclass(frozen=True)
class TrainingStep:
    """The training step to compile. Building it runs nothing on a device.

    Attributes:
        model: the network's module, in the experiment's compute dtype.
        function: pure, `(state, batch, key) -> (state, scalars)`.
        abstract_state: shapes and dtypes of the state.
        placed: sharding of each array of the state.
        mesh: the devices.
    """

    model: nn.Module
    function: Step
    abstract_state: TrainState
    placed: Any
    mesh: Mesh
    _init: Callable[[jax.Array, Mapping[str, Any]], TrainState]

    def initial_state(self, key: jax.Array, loaded: Mapping[str, Any]) -> TrainState:
        """The state before the first update, with every array created on its devices.

        Args:
            key: for the initial weights.
            loaded: weights that replace some of them (`pretrained.load`); may be empty.
        """
        return jax.jit(self._init, out_shardings=self.placed)(key, loaded)

    def compiled(self, *, donate: bool = True) -> Step:
        """`function`, compiled when it is first called.

        Args:
            donate: reuse the state's memory for the new state; the old one is no longer usable.
        """
        replicated = sharding.replicated(self.mesh)
        return jax.jit(
            self.function,
            in_shardings=(self.placed, sharding.over_batch(self.mesh), replicated),
            out_shardings=(self.placed, replicated),
            donate_argnums=0 if donate else (),
        )


def build(exp: Experiment, mesh: Mesh) -> TrainingStep:
    """The training step of an experiment.

    Raises:
        ConfigError: for an objective, or parts of the optimiser, that do not fit the network.
    """
    network = registry.module("network", exp.model.name)
    model = network.build(exp.model, jnp.dtype(exp.compute_dtype), exp.optimizer.frozen)
    schedule = optimizer.learning_rate_schedule(exp.optimizer, exp.num_steps)
    transformation = optimizer.build(exp.optimizer, schedule)

    def init(key: jax.Array, loaded: Mapping[str, Any]) -> TrainState:
        variables = pretrained.overlay(model.init_variables(key), loaded)
        exp.optimizer.check_parts(variables["params"])
        return state_lib.create(variables, transformation, exp.ema_decay > 0, exp.optimizer.frozen)

    abstract = jax.eval_shape(init, jax.random.key(exp.seed), {})
    objective = registry.module("objective", exp.objective.name)
    function = state_lib.make_train_step(
        objective.build(exp.objective, model, exp.num_steps),
        transformation,
        schedule,
        exp.ema_decay,
        exp.accumulate,
        exp.optimizer.frozen,
    )
    return TrainingStep(model, function, abstract, sharding.of_state(abstract, mesh), mesh, init)
