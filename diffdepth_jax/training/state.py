"""The train state and the pure step that advances it."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

# (params, batch_stats, batch, key, step) -> (loss, aux with .scalars and .batch_stats)
LossFunction = Callable[[Any, Any, Mapping[str, jax.Array], jax.Array, jax.Array], tuple]
Scalars = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that training changes; arrays only.

    Attributes:
      step: int32 scalar, the number of updates done.
      params, batch_stats: the model's collections.
      opt_state: optax's.
      ema_params: exponential moving average of the params; empty when it is switched off.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any


def create(
    variables: Mapping[str, Any], optimizer: optax.GradientTransformation, ema: bool = False
) -> TrainState:
    """The state before the first update, from a model's freshly initialised variables."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema else {},
    )


def make_train_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Mapping[str, jax.Array], jax.Array], tuple[TrainState, Scalars]]:
    """Returns the pure function `(state, batch, key) -> (state, scalars)`.

    `key` is the run's, the same for every step: the step's own key is folded from it and
    `state.step`, so that a resumed run draws what an uninterrupted one would.
    """

    def train_step(
        state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[TrainState, Scalars]:
        key = jax.random.fold_in(key, state.step)
        (loss, aux), gradients = jax.value_and_grad(loss_function, has_aux=True)(
            state.params, state.batch_stats, batch, key, state.step
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        scalars = {
            "loss": loss,
            **aux.scalars,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        ema_params = jax.tree.map(
            lambda average, new: ema_decay * average + (1.0 - ema_decay) * new,
            state.ema_params,
            params if ema_decay else {},
        )
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=aux.batch_stats,
            opt_state=opt_state,
            ema_params=ema_params,
        )
        return state, scalars

    return train_step
