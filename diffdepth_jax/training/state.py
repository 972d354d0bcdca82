"""The train state and the pure step that advances it."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

# (params, batch_stats, batch, key, step) -> (loss, aux); aux a NamedTuple: scalars, batch_stats
LossFunction = Callable[[Any, Any, Mapping[str, jax.Array], jax.Array, jax.Array], tuple]
Scalars = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything that training updates; arrays only.

    Attributes:
        step: int32 scalar, number of completed updates.
        params, batch_stats: the model's collections.
        opt_state: optax's state for the trained parts.
        ema_params: exponential moving average of the params; empty if disabled.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any


def create(
    variables: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    ema: bool = False,
    frozen: Collection[str] = (),
) -> TrainState:
    """The state before the first update, from a model's freshly initialised variables.

    Args:
        variables: "params" and optionally "batch_stats".
        optimizer: optimises the parts not in `frozen`.
        ema: whether to keep an average of the parameters.
        frozen: top-level names of the params that are not trained.
    """
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(_without(params, frozen)),
        ema_params=jax.tree.map(jnp.copy, params) if ema else {},
    )


def make_train_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    frozen: Collection[str] = (),
) -> Callable[[TrainState, Mapping[str, jax.Array], jax.Array], tuple[TrainState, Scalars]]:
    """Returns the pure function `(state, batch, key) -> (state, scalars)`.

    `key` is the run's key, the same for every step: each step folds `state.step` into it, so that a
    resumed run uses the same random numbers as an uninterrupted one.

    Args:
        loss_function: see `LossFunction`.
        optimizer: optimises the parts not in `frozen`.
        schedule: maps update to learning rate, for the log.
        ema_decay: decay of the parameters' average; 0 for no average.
        accumulate: process a batch in this many parts, one after another; see `accumulated`.
        frozen: top-level names of the params that are not trained; their gradients are not
            computed.
    """

    def train_step(
        state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[TrainState, Scalars]:
        key = jax.random.fold_in(key, state.step)
        trained = _without(state.params, frozen)

        def loss_of_trained(trained: Any, *arguments: Any) -> tuple:
            return loss_function({**state.params, **trained}, *arguments)

        gradients_of = jax.value_and_grad(loss_of_trained, has_aux=True)
        if accumulate > 1:
            gradients_of = accumulated(gradients_of, accumulate)
        (loss, aux), gradients = gradients_of(trained, state.batch_stats, batch, key, state.step)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = {**state.params, **optax.apply_updates(trained, updates)}
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


def accumulated(gradients_of: Callable[..., tuple], parts: int) -> Callable[..., tuple]:
    """`value_and_grad` of a loss function, computed on parts of a batch one after another.

    Needs the memory of one part. Gradients, loss and scalars are means over the parts; batch
    statistics are updated by each part in turn; every part has its own key. A part takes every
    `parts`-th image, and so an equal share from each device, without moving data.

    Args:
        gradients_of: `(params, batch_stats, batch, key, step) -> ((loss, aux), gradients)`.
        parts: number of parts; the batch size must be divisible by it, and a part by the number of
            devices.
    """

    def in_parts(
        params: Any,
        batch_stats: Any,
        batch: Mapping[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple:
        def one(carry: tuple[Any, Any], inputs: tuple[jax.Array, Any]) -> tuple:
            total, batch_stats = carry
            index, part = inputs
            (loss, aux), gradients = gradients_of(
                params, batch_stats, part, jax.random.fold_in(key, index), step
            )
            carry = (jax.tree.map(jnp.add, total, gradients), aux.batch_stats)
            return carry, (loss, aux._replace(batch_stats=()))

        batches = jax.tree.map(
            lambda array: jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0), batch
        )
        results: Any
        (total, batch_stats), results = jax.lax.scan(
            one, (jax.tree.map(jnp.zeros_like, params), batch_stats), (jnp.arange(parts), batches)
        )
        loss, aux = jax.tree.map(lambda values: values.mean(0), results)
        gradients = jax.tree.map(lambda values: values / parts, total)
        return (loss, aux._replace(batch_stats=batch_stats)), gradients

    return in_parts


def _without(params: Mapping[str, Any], frozen: Collection[str]) -> dict[str, Any]:
    return {name: part for name, part in params.items() if name not in frozen}
