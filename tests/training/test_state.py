from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffdepth_jax.training import state as state_lib


class Aux(NamedTuple):
    scalars: dict
    batch_stats: dict


def loss_function(params, batch_stats, batch, key, step):
    """A parabola around the batch's target; says what it was given."""
    loss = jnp.sum((params["w"] - batch["target"]) ** 2)
    scalars = {"noise": jax.random.uniform(key), "seen_step": step.astype(jnp.float32)}
    return loss, Aux(scalars, {"calls": batch_stats["calls"] + 1})


def start(ema=False):
    variables = {"params": {"w": jnp.array([1.0, 2.0])}, "batch_stats": {"calls": jnp.zeros(())}}
    return state_lib.create(variables, optax.sgd(0.25), ema)


def make(ema_decay=0.0):
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    return state_lib.make_train_step(loss_function, optax.sgd(0.25), schedule, ema_decay)


BATCH = {"target": jnp.array([3.0, 2.0])}
KEY = jax.random.key(7)


def test_a_step_updates_parameters_statistics_and_counter():
    state, scalars = make()(start(), BATCH, KEY)
    assert state.step == 1
    np.testing.assert_allclose(state.params["w"], [2.0, 2.0])  # w - 0.25 * 2 (w - target)
    assert state.batch_stats["calls"] == 1
    assert scalars["loss"] == 4.0 and scalars["gradient_norm"] == 4.0
    np.testing.assert_allclose(scalars["learning_rate"], 1.0)
    state, scalars = make()(state, BATCH, KEY)
    assert scalars["seen_step"] == 1
    np.testing.assert_allclose(scalars["learning_rate"], 0.9)
    np.testing.assert_allclose(state.params["w"], [2.5, 2.0])


def test_a_step_is_a_function_of_its_arguments_and_its_noise_changes_with_the_step():
    step = make()
    state, scalars = step(start(), BATCH, KEY)
    _, again = step(start(), BATCH, KEY)
    _, following = step(state, BATCH, KEY)
    _, other_run = step(start(), BATCH, jax.random.key(8))
    assert scalars["noise"] == again["noise"]
    assert scalars["noise"] == jax.random.uniform(jax.random.fold_in(KEY, 0))
    assert len({float(s["noise"]) for s in (scalars, following, other_run)}) == 3


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_the_average_follows_the_parameters_where_it_is_asked_for(decay):
    state = start(ema=decay > 0)
    for _ in range(2):
        state, _ = make(decay)(state, BATCH, KEY)
    if not decay:
        assert state.ema_params == {}
        return
    expected = 0.75 * (0.75 * 1.0 + 0.25 * 2.0) + 0.25 * 2.5
    np.testing.assert_allclose(state.ema_params["w"], [expected, 2.0])
