"""Runs that start from the weights of a whole network."""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from diffdepth_jax import inference
from diffdepth_jax.errors import ConfigError, MissingFileError, WeightsError
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.models.encoders import dinov2
from diffdepth_jax.models.networks import depth_anything
from diffdepth_jax.models.networks.network import expected_variables
from diffdepth_jax.training import experiment, loop, pretrained
from diffdepth_jax.training.pretrained import InitConfig
from diffdepth_jax.training.teacher import TeacherConfig
from diffdepth_jax.weights import files
from diffdepth_jax.weights.rules import export, names
from tests.models.networks.test_contract import small

DEPTH_ANYTHING = depth_anything.Config(
    encoder=dinov2.Config(
        embed_dim=64, depth=4, num_heads=1, taps=(0, 1, 2, 3), hidden_features=16, grid=3
    ),
    project_features=(4, 4, 4, 4),
    fused_features=4,
    output_features=4,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A Depth Anything file that only its name identifies as version 2, and its variables."""
    rng, table = np.random.default_rng(0), depth_anything.rules(DEPTH_ANYTHING)
    shapes = expected_variables(depth_anything.build(DEPTH_ANYTHING))
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    path = tmp_path_factory.mktemp("files") / "depth_anything_v2_vits.safetensors"
    files.write_safetensors(path, export(variables, table, names(variables, table)))
    return path, variables


def assert_equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_starts_from_the_variables_of_another(tiny, tmp_path):
    loop.train(experiment.from_mapping(tiny | {"ema_decay": 0.5}), tmp_path / "teacher")
    teacher = inference.load(tmp_path / "teacher")
    tiny["init"] = {"network": str(tmp_path / "teacher"), "options": {"step": None}}
    tiny["optimizer"] = {"learning_rate": 1e-9}
    tiny |= {"num_steps": 1, "ema_decay": 0.9, "seed": 5}
    loop.train(experiment.from_mapping(tiny), tmp_path / "student")
    student = inference.load(tmp_path / "student")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
        student.variables["params"],
        teacher.variables["params"],
    )
    # The average starts from the teacher too, and running statistics continue from the teacher's.
    mean = [model.variables["batch_stats"]["BatchNorm_0"]["mean"] for model in (student, teacher)]
    assert 0 < np.abs(mean[0] - mean[1]).max() < np.abs(mean[1]).max()

    # Resumed, it does not need the teacher.
    shutil.rmtree(tmp_path / "teacher")
    loop.train(experiment.from_mapping(tiny | {"num_steps": 2}), tmp_path / "student")


def test_the_step_of_a_run_can_be_chosen(tiny, tmp_path):
    loop.train(experiment.from_mapping(tiny), tmp_path)
    config = experiment.from_mapping(tiny).model
    first = pretrained.load(InitConfig(network=str(tmp_path), options={"step": 3}), config)
    assert_equal(first, inference.load(tmp_path, step=3).variables)
    assert not np.array_equal(
        first["params"]["Conv_0"]["kernel"],
        inference.load(tmp_path).variables["params"]["Conv_0"]["kernel"],
    )


def test_a_published_file_fills_the_whole_network(file, tmp_path):
    path, variables = file
    assert_equal(pretrained.load(InitConfig(network=str(path)), DEPTH_ANYTHING), variables)
    # Only the name determines the version.
    unnamed = tmp_path / "mine.safetensors"
    shutil.copy(path, unnamed)
    with pytest.raises(
        WeightsError, match=r"^config\.init\.network: .*version.*config\.init\.options"
    ):
        pretrained.load(InitConfig(network=str(unnamed)), DEPTH_ANYTHING)
    found = pretrained.load(
        InitConfig(network=str(unnamed), options={"version": 2}), DEPTH_ANYTHING
    )
    assert_equal(found, variables)


def test_fields_that_matter_only_in_training_may_differ(file):
    encoder = replace(DEPTH_ANYTHING.encoder, remat="full", drop_path_rate=0.1)
    assert pretrained.load(
        InitConfig(network=str(file[0])), replace(DEPTH_ANYTHING, encoder=encoder)
    )


def test_the_sampler_may_differ_but_not_what_the_denoiser_predicts(tmp_path):
    _, module, variables = small("diffusion_depth")
    config, path = module.config, tmp_path / "weights.safetensors"
    inference.export(DepthModel(module, variables, config), path)

    def load(**changes):
        changed = replace(config, diffusion=replace(config.diffusion, **changes))
        options = {"max_depth": config.max_depth}
        return pretrained.load(InitConfig(network=str(path), options=options), changed)

    sampler = {"num_inference_steps": 4, "timestep_spacing": "trailing", "clip_sample": 3.0}
    assert_equal(load(**sampler, eta=0.5), variables)
    with pytest.raises(ConfigError, match=r"prediction_type: 'sample' -> 'epsilon'"):
        load(prediction_type="sample")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"max_depth": 20.0}, "config.model.max_depth: 20.0 -> None"),
        ({"version": 1}, "config.model.version: 1 -> 2"),
        ({"output_features": 8}, "config.model.output_features: 8 -> 4"),
    ],
)
def test_another_config_is_refused_saying_what_to_change(fields, message, file):
    with pytest.raises(ConfigError) as info:
        pretrained.load(InitConfig(network=str(file[0])), replace(DEPTH_ANYTHING, **fields))
    assert str(info.value).startswith("config.init.network: ") and message in str(info.value)
    assert str(file[0]) in str(info.value) and "project_features" not in str(info.value)


def test_errors_name_the_field(tiny, file, tmp_path):
    path = str(file[0])
    with pytest.raises(
        ConfigError, match=r"config\.init: encoder is 'a' and network is 'b': set on"
    ):
        experiment.from_mapping(tiny | {"init": {"encoder": "a", "network": "b"}})
    model = experiment.from_mapping(tiny).model
    with pytest.raises(ConfigError, match=r"a 'depth_anything', but config\.model is a 'tiny'"):
        pretrained.load(InitConfig(network=path), model)
    with pytest.raises(MissingFileError, match="nowhere"):
        pretrained.load(InitConfig(network=str(tmp_path / "nowhere")), model)
    with pytest.raises(ConfigError, match=r"config\.init\.network: .*colour"):
        pretrained.load(InitConfig(network=path, options={"colour": 1}), DEPTH_ANYTHING)
    with pytest.raises(ValueError, match=r"options are .*but network is not set"):
        InitConfig(options={"version": 2})
    with pytest.raises(ValueError, match=r"options are .*but checkpoint is not set"):
        TeacherConfig(options={"version": 2})
    with pytest.raises(
        MissingFileError, match=r"^config\.init\.network: .*none\.pt does not exist"
    ):
        pretrained.load(InitConfig(network=str(tmp_path / "none.pt")), DEPTH_ANYTHING)
    with pytest.raises(ConfigError, match=r"config\.init\.options has dtype"):
        pretrained.load(InitConfig(network=path, options={"dtype": "f4"}), DEPTH_ANYTHING)
    tiny["init"] = {"network": path}
    with pytest.raises(ConfigError, match="is a 'tiny'"):
        loop.train(experiment.from_mapping(tiny), tmp_path / "run")
    assert not (tmp_path / "run").exists()
