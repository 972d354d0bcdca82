"""Fields of the experiment have their effect, whatever the network."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax import inference, registry
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.training import experiment, loop
from diffdepth_jax.weights import orbax


def train(tiny, workdir, **changes):
    mapping = copy.deepcopy(tiny)
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = mapping
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    loop.train(experiment.from_mapping(mapping), workdir)
    return orbax.read_arrays(workdir)


@pytest.fixture
def built(monkeypatch, tiny):
    """The arguments with which the tiny network is built for training."""
    network = registry.module("network", "tiny")
    original, calls = network.build, []

    def build(config, dtype=jnp.float32, frozen=()):
        calls.append({"dtype": jnp.dtype(dtype), "frozen": frozen})
        return original(config)

    monkeypatch.setattr(network, "build", build)
    return calls


def test_the_network_gets_the_configs_type_and_frozen_parts(tiny, tmp_path, built):
    multipliers = {"Conv_0": 0.0, "BatchNorm_0": 0.5}
    options = {"compute_dtype": "bfloat16", "optimizer__multipliers": multipliers}
    found = train(tiny, tmp_path, **options, num_steps=1)
    assert built[0] == {"dtype": jnp.dtype("bfloat16"), "frozen": ("Conv_0",)}
    assert {array.dtype.name for array in jax.tree.leaves(found.params)} == {"float32"}


def test_a_frozen_part_keeps_its_initial_values_and_the_run_resumes(tiny, tmp_path):
    frozen = {"optimizer__multipliers": {"Conv_0": 0.0}, "ema_decay": 0.5}
    found = train(tiny, tmp_path, **frozen, num_steps=3)
    network = registry.module("network", "tiny").build(registry.module("network", "tiny").Config())
    init_key, _ = jax.random.split(jax.random.key(0))
    born = network.init_variables(init_key)["params"]
    for name, part in found.params.items():
        same = np.allclose(part["bias"], born[name]["bias"], atol=1e-7)
        assert same == (name == "Conv_0"), name
    np.testing.assert_allclose(found.params["Conv_0"]["kernel"], born["Conv_0"]["kernel"])
    later = train(tiny, tmp_path, **frozen, num_steps=4)
    assert later.step == 4
    np.testing.assert_array_equal(later.params["Conv_0"]["bias"], found.params["Conv_0"]["bias"])


def test_unknown_parts_are_an_error_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"names encoder, .* BatchNorm_0, Conv_0, Conv_1"):
        train(tiny, tmp_path / "run", optimizer__multipliers={"encoder": 0.1})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_samples", 4, "the network 'tiny' uses no noise"),
        ("num_inference_steps", 5, "the network 'tiny' does not denoise"),
        ("predicts", "disparity", "predicts is 'disparity', but the model predicts depth"),
    ],
)
def test_an_evaluation_that_does_not_fit_is_an_error_before_training(
    name, value, message, tiny, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        train(tiny, tmp_path / "run", **{f"evaluation__{name}": value})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_batch_can_be_processed_in_parts_on_all_devices(tiny, tmp_path):
    whole = train(tiny, tmp_path / "whole", batch_size=4, num_steps=1)
    parts = train(tiny, tmp_path / "parts", batch_size=4, num_steps=1, accumulate=2)
    # BatchNorm saw the two halves in sequence.
    assert parts.params.keys() == whole.params.keys()
    mean, halves = (each.batch_stats["BatchNorm_0"]["mean"] for each in (whole, parts))
    assert np.abs(halves).sum() > 1.5 * np.abs(mean).sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4, "accumulate": 3}, "accumulate is 3; it must divide batch_size, 4"),
        ({"batch_size": 4, "accumulate": 4}, "4 cannot be divided in 4 parts among 2 devices.* 8"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"compute_dtype": "float16"}, "compute_dtype is 'float16'"),
    ],
)
def test_impossible_parts_and_types_are_refused(tiny, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_the_averaged_parameters_are_loaded_and_evaluated(tiny, tmp_path):
    found = train(tiny, tmp_path, ema_decay=0.9)
    loaded = inference.load(tmp_path).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, loaded, found.ema_params)
    assert not np.array_equal(loaded["Conv_1"]["kernel"], found.params["Conv_1"]["kernel"])


def test_the_objective_gets_the_length_of_the_run(tiny, tmp_path, monkeypatch):
    objective = registry.module("objective", "tiny")
    original, lengths = objective.build, []

    def build(config, model, num_steps):
        lengths.append(num_steps)
        return original(config, model, num_steps)

    monkeypatch.setattr(objective, "build", build)
    train(tiny, tmp_path, num_steps=2)
    assert lengths == [2]
