from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffdepth_jax.training import sharding
from diffdepth_jax.training import state as state_lib


class Aux(NamedTuple):
    scalars: dict
    batch_stats: dict


def loss_function(params, batch_stats, batch, key, step):
    """A parabola around the batch's target; also returns what it was given."""
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


def test_a_step_is_a_pure_function_whose_noise_changes_with_the_step():
    step = make()
    state, scalars = step(start(), BATCH, KEY)
    _, again = step(start(), BATCH, KEY)
    _, following = step(state, BATCH, KEY)
    _, other_run = step(start(), BATCH, jax.random.key(8))
    assert scalars["noise"] == again["noise"]
    assert scalars["noise"] == jax.random.uniform(jax.random.fold_in(KEY, 0))
    assert len({float(s["noise"]) for s in (scalars, following, other_run)}) == 3


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_the_average_follows_the_parameters_if_requested(decay):
    state = start(ema=decay > 0)
    for _ in range(2):
        state, _ = make(decay)(state, BATCH, KEY)
    if not decay:
        assert state.ema_params == {}
        return
    expected = 0.75 * (0.75 * 1.0 + 0.25 * 2.0) + 0.25 * 2.5
    np.testing.assert_allclose(state.ema_params["w"], [expected, 2.0])


class Layers(nn.Module):
    """A deep network without BatchNorm."""

    @nn.compact
    def __call__(self, inputs):
        for _ in range(6):
            inputs = jnp.tanh(nn.Dense(64)(inputs))
        return inputs


def layers_loss(params, batch_stats, batch, key, step):
    """The mean over images; counts its calls and returns a number drawn from its key."""
    output = Layers().apply({"params": params}, batch["image"])
    loss = jnp.mean((output - batch["target"]) ** 2)
    scalars = {"target": jnp.mean(batch["target"]), "noise": jax.random.uniform(key)}
    return loss, Aux(scalars, {"calls": batch_stats["calls"] + 1})


def layers_problem(images=8):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(Layers().init, jax.random.key(0), jnp.zeros((1, 64)))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), shapes
    )
    batch = {
        name: rng.standard_normal((images, 64)).astype(np.float32) for name in ("image", "target")
    }
    state = state_lib.create(
        variables | {"batch_stats": {"calls": jnp.zeros(())}}, optax.sgd(1.0), frozen=("Dense_0",)
    )
    return state, jax.tree.map(jnp.asarray, batch)


def layers_step(**options):
    return state_lib.make_train_step(
        layers_loss, optax.sgd(1.0), optax.constant_schedule(1.0), **options
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole_batch(parts):
    state, batch = layers_problem()
    whole, want = jax.jit(layers_step())(state, batch, KEY)
    accumulated, got = jax.jit(layers_step(accumulate=parts))(state, batch, KEY)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        accumulated.params,
        whole.params,
    )
    for name in ("loss", "target", "gradient_norm"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)
    # Statistics pass from part to part, and each part has its own key.
    assert whole.batch_stats["calls"] == 1 and accumulated.batch_stats["calls"] == parts
    key = jax.random.fold_in(KEY, 0)
    noise = [jax.random.uniform(jax.random.fold_in(key, part)) for part in range(parts)]
    np.testing.assert_allclose(got["noise"], np.mean(noise), rtol=1e-6)
    assert len(set(map(float, noise))) == parts


def test_a_batch_in_parts_needs_less_memory_and_no_moves_between_devices():
    state, batch = layers_problem(images=4096)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    assert mesh.size > 1
    replicated, over_batch = sharding.replicated(mesh), sharding.over_batch(mesh)
    sizes = []
    for parts in (1, 8):
        step = jax.jit(
            layers_step(accumulate=parts),
            in_shardings=(replicated, over_batch, replicated),
            out_shardings=(replicated, replicated),
        )
        compiled = step.lower(state, batch, KEY).compile()
        text = compiled.as_text()
        assert "all-reduce" in text  # for the gradients; nothing else moves
        for moved in ("all-gather", "all-to-all", "collective-permute"):
            assert moved not in text
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.5 * sizes[0], sizes


def test_frozen_parts_have_no_gradients_updates_or_optimizer_state():
    adamw = optax.adamw(0.1, weight_decay=0.5)
    state, batch = layers_problem()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    frozen = ("Dense_0", "Dense_1")
    state = state_lib.create(variables, adamw, ema=True, frozen=frozen)
    moments = jax.tree_util.tree_leaves_with_path(state.opt_state)
    assert not any("Dense_0" in str(path) or "Dense_1" in str(path) for path, _ in moments)

    def step(frozen):
        return state_lib.make_train_step(
            layers_loss, adamw, optax.constant_schedule(0.1), ema_decay=0.9, frozen=frozen
        )

    new, _ = step(frozen)(state, batch, KEY)
    assert new.params.keys() == new.ema_params.keys() == state.params.keys()
    for name, part in new.params.items():
        same = np.array_equal(part["kernel"], state.params[name]["kernel"])
        assert same == (name in frozen), name
    # Each layer costs one product forwards, one for its gradient, and one for the layers before it.
    whole = state_lib.create(variables, adamw, ema=True)
    products = [
        str(jax.make_jaxpr(step(parts))(each, batch, KEY)).count("dot_general")
        for parts, each in (((), whole), (frozen, state))
    ]
    assert products == [3 * 6 - 1, 3 * 6 - 1 - 4]
