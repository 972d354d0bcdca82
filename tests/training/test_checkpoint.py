import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.errors import ConfigError, FileError, WeightsError
from diffdepth_jax.training import optimizer, sharding
from diffdepth_jax.training import state as state_lib
from diffdepth_jax.training.checkpoint import CheckpointConfig, Checkpointer
from diffdepth_jax.training.optimizer import OptimizerConfig
from diffdepth_jax.training.sharding import MeshConfig
from diffdepth_jax.training.state import TrainState
from diffdepth_jax.weights import checksums


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
def test_state_config_and_data_are_restored(tmp_path, ema):
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


def test_the_best_is_kept_as_well_as_the_newest(tmp_path):
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
        pytest.raises(ConfigError, match="a different config") as caught,
    ):
        checkpointer.restore(1, abstract(dataclasses.replace(state, params=params), target))
    for message in (
        "params/layer/more",
        r"params/layer/kernel: (64, 64), but the model has (64, 32)",
    ):
        assert message in str(caught.value)


def test_leftovers_of_a_crash_are_removed(tmp_path):
    state = example_state()
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, state, {}, b"", {})
    # Orbax's name for an unfinished checkpoint.
    (checkpointer.directory / "1").rename(checkpointer.directory / "2.orbax-checkpoint-tmp")
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.latest_step() is None
        checkpointer.save(3, state, {}, b"", {})
    assert [path.name for path in checkpointer.directory.iterdir()] == ["3"]


@pytest.mark.parametrize("gone", ["state", "config", "data", "state/_METADATA", "*"])
def test_a_half_deleted_checkpoint_does_not_matter(tmp_path, gone):
    """Old checkpoints are deleted file by file, so a crash may leave some files."""
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


def test_a_save_holds_the_state_of_its_step_while_training_continues(tmp_path):
    """The step donates the state's buffers, which must not affect the save in the background."""
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


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpointer(workdir, keep=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, example_state(), {"model": {"name": "tiny"}}, b"", {})
    return workdir


@pytest.mark.parametrize("gone", ["*", "state/_METADATA", "state/d", "data", "config"])
def test_training_does_not_start_if_the_newest_checkpoint_is_incomplete(two_steps, tmp_path, gone):
    """Otherwise saves of earlier steps would be skipped, and the run could not be resumed."""
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoints" / "2"
    for path in newest.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(WeightsError, match=r"is missing.*move it away.*step 1\b") as caught:
        Checkpointer(tmp_path, keep=2)
    assert str(newest) in str(caught.value)
    newest.rename(tmp_path / "away")
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.latest_step() == 1


def test_an_empty_directory_as_the_only_step_is_refused(tmp_path):
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"checkpoints/100.*the run has no complete older step"):
        Checkpointer(tmp_path, keep=1)


def test_a_flipped_bit_prevents_resuming(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    files = (tmp_path / "checkpoints" / "2" / "state").glob("**/d/*")
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{largest.name} has changed.*step 1\b"):
        Checkpointer(tmp_path, keep=2)


def test_a_checkpoint_from_before_the_checksums_can_be_resumed(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "2" / "checksums.json").unlink()
    state = example_state()
    target = sharding.replicated(sharding.make_mesh(MeshConfig()))
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        restored, *_ = checkpointer.restore(2, abstract(state, target))
    equal(restored, state)


@pytest.mark.parametrize("text", ["", "[]", '{"iterator": 3}', '{"iterator": "\u0416"}'])
def test_an_invalid_data_position_is_damage(two_steps, tmp_path, text):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "2" / "checksums.json").unlink()
    (tmp_path / "checkpoints" / "2" / "data" / "metadata").write_text(text)
    target = sharding.replicated(sharding.make_mesh(MeshConfig()))
    with (
        Checkpointer(tmp_path, keep=2) as checkpointer,
        pytest.raises(WeightsError, match=r"checkpoints/2 is damaged.*step 1\b"),
    ):
        checkpointer.restore(2, abstract(example_state(), target))


def test_a_save_that_does_nothing_is_an_error(tmp_path):
    """Orbax saves no step older than the latest: it only returns that it did not."""
    state = example_state()
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(5, state, {}, b"", {})
        with pytest.raises(FileError, match=r"checkpoints: step 4 is not newer"):
            checkpointer.save(4, state, {}, b"", {})
        checkpointer.save(6, state, {}, b"", {})
    assert [path.name for path in checkpointer.directory.iterdir()] == ["6"]


@pytest.mark.parametrize("act", ["wait", "save", "leave"])
@pytest.mark.parametrize("part", ["state/_METADATA", "checksums.json"])
def test_a_save_is_verified(tmp_path, monkeypatch, act, part):
    write = checksums.write

    def spoil(directory):
        write(directory)
        (directory / part).unlink()

    monkeypatch.setattr(checksums, "write", spoil)
    state = example_state()
    checkpointer = Checkpointer(tmp_path, keep=1)
    with pytest.raises(FileError, match=rf"step 1 is incomplete \({part} is missing"), checkpointer:
        checkpointer.save(1, state, {}, b"", {})
        if act == "wait":
            assert checkpointer.latest_step() is None
            checkpointer.wait()
        if act == "save":
            checkpointer.save(2, state, {}, b"", {})


def test_an_impossible_run_directory_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"file/checkpoints"):
        Checkpointer(tmp_path / "file", keep=1)


@pytest.mark.parametrize("fields", [{"every_steps": 0}, {"keep": 0}, {"best_metric": "absrel"}])
def test_impossible_values_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        CheckpointConfig(**fields)
