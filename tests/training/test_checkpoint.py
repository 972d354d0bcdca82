import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.training import optimizer, sharding
from diffdepth_jax.training import state as state_lib
from diffdepth_jax.training.checkpoint import CheckpointConfig, Checkpointer
from diffdepth_jax.training.optimizer import OptimizerConfig
from diffdepth_jax.training.sharding import MeshConfig
from diffdepth_jax.training.state import TrainState


def example_state(ema=False) -> TrainState:
    def create(key):
        params = {"layer": {"kernel": jax.random.normal(key, (64, 64)), "bias": jnp.zeros(3)}}
        variables = {"params": params, "batch_stats": {"norm": {"mean": jnp.ones(5)}}}
        transformation = optimizer.build(OptimizerConfig(clip_norm=1.0), lambda step: 1e-3)
        return state_lib.create(variables, transformation, ema)

    replicated = sharding.replicated(sharding.make_mesh(MeshConfig()))
    return jax.jit(create, out_shardings=replicated)(jax.random.key(0))


def abstract(state, target):
    return sharding.abstract(state, jax.tree.map(lambda _: target, state))


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ema", [False, True])
def test_state_config_and_data_come_back(tmp_path, ema):
    state = example_state(ema)
    data = json.dumps({"position": 7}).encode() + bytes([0, 255])
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.latest_step() is None
        log = {"sums": {"loss": 0.1 + 0.2}, "count": 3}
        checkpointer.save(5, state, {"seed": 3, "model": {"name": "tiny"}}, data, log)
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.latest_step() == 5
        assert checkpointer.config(5) == {"seed": 3, "model": {"name": "tiny"}}
        target = sharding.replicated(sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
        restored, restored_data, restored_log = checkpointer.restore(5, abstract(state, target))
    equal(restored, state)
    assert restored_data == data and restored_log == log
    assert all(array.sharding == target for array in jax.tree.leaves(restored))


def test_only_the_newest_are_kept(tmp_path):
    state = example_state()
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, state, {}, b"", {})
    assert sorted(path.name for path in checkpointer.directory.iterdir()) == ["2", "3"]


def test_the_best_is_kept_beside_the_newest(tmp_path):
    state = example_state()
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        for step, best in ((1, None), (2, 1), (3, 1), (4, 3), (5, 3)):
            checkpointer.keep_best(best)
            checkpointer.save(step, state, {}, b"", {})
    assert sorted(path.name for path in checkpointer.directory.iterdir()) == ["3", "5"]


def test_arrays_that_do_not_fit_are_named(tmp_path):
    state = example_state()
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, state, {}, b"", {})
    params = {"layer": {"kernel": jnp.zeros((64, 32)), "bias": jnp.zeros(3), "more": jnp.zeros(1)}}
    target = sharding.replicated(sharding.make_mesh(MeshConfig()))
    with (
        Checkpointer(tmp_path, keep=1) as checkpointer,
        pytest.raises(ConfigError, match="another config") as caught,
    ):
        checkpointer.restore(1, abstract(dataclasses.replace(state, params=params), target))
    for told in ("params/layer/more", r"params/layer/kernel: (64, 64), the model has (64, 32)"):
        assert told in str(caught.value)


def test_leftovers_of_a_crash_are_removed(tmp_path):
    state = example_state()
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, state, {}, b"", {})
    (checkpointer.directory / "1").rename(
        checkpointer.directory / "2.orbax-checkpoint-tmp"
    )  # as Orbax calls what it has not finished
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.latest_step() is None
        checkpointer.save(3, state, {}, b"", {})
    assert [path.name for path in checkpointer.directory.iterdir()] == ["3"]


@pytest.mark.parametrize("gone", ["state", "config", "data", "state/_METADATA", "*"])
def test_a_checkpoint_that_was_being_deleted_is_no_obstacle(tmp_path, gone):
    """Old checkpoints are deleted file by file; a crash leaves some of them."""
    state = example_state()
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(2, state, {}, b"", {})
    old = checkpointer.directory / "1"
    shutil.copytree(checkpointer.directory / "2", old)
    for path in old.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.latest_step() == 2
        checkpointer.save(3, state, {}, b"", {})
    assert [path.name for path in checkpointer.directory.iterdir()] == ["3"]


def test_a_save_holds_the_state_of_its_step_while_training_goes_on(tmp_path):
    """The step donates the state's buffers; the save in the background must not see that."""
    state = example_state()
    step = jax.jit(lambda state: jax.tree.map(lambda array: array + 1, state), donate_argnums=0)
    state = step(state)
    expected = jax.tree.map(np.array, state)
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, state, {}, b"", {})
        for _ in range(20):
            state = step(state)
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        target = sharding.replicated(sharding.make_mesh(MeshConfig()))
        restored, *_ = checkpointer.restore(1, abstract(state, target))
    equal(restored, expected)


@pytest.mark.parametrize("fields", [{"every_steps": 0}, {"keep": 0}, {"best_metric": "absrel"}])
def test_values_that_cannot_be_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        CheckpointConfig(**fields)
