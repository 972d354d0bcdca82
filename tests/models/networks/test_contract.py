"""What every registered network promises, on a small one of each."""

import ast
import dataclasses
import functools
import inspect
import re
import subprocess
import sys
from typing import get_args

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax import config as config_lib
from diffdepth_jax import inference, registry
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.models.networks import network
from diffdepth_jax.typing import InputSpec

SMALL = {
    "encoder": {"name": "resnet", "depths": (1, 1), "widths": (4, 8)},
    "neck": {"features": 8},
    "codec": {"latent_channels": 4, "initial_depth": 8.0},
    "max_depth": 80.0,
}
MORE = {
    "diffusion_depth": {
        "denoiser": {"hidden_features": 8},
        "diffusion": {"num_inference_steps": 2},
    },
    "regression": {"hidden_features": 8},
}
every_network = pytest.mark.parametrize("name", registry.names("network"))


@functools.cache
def small(name, **options):
    """The network's file, a small module of it, and variables."""
    file = registry.module("network", name)
    config = config_lib.chosen(
        "network", {"name": name, **SMALL, **MORE[name]}, resolve=registry.module, path="model"
    )
    model = file.build(config, **options)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1
        offset = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return jnp.asarray(offset + scale * rng.standard_normal(leaf.shape), jnp.float32)

    return file, model, jax.tree_util.tree_map_with_path(draw, shapes)


def inputs(model, size=(16, 24)):
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.standard_normal((2, *size, 3)), jnp.float32)
    if not isinstance(model, network.Denoises):
        return (image,)
    return image, jnp.asarray(rng.standard_normal(model.latent_shape(image.shape)), jnp.float32)


@every_network
def test_variables_are_single_precision_and_the_config_survives_json(name):
    file, model, _ = small(name, dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init_variables, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    mapping = config_lib.to_mapping(model.config)
    again = config_lib.from_mapping(file.Config, mapping, resolve=registry.module)
    assert again == model.config


@every_network
def test_any_image_gets_depth_of_its_own_size(name):
    _, model, variables = small(name)
    depth_model = DepthModel(model, variables, model.config)
    image = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
    depth = depth_model.predict(image)
    assert depth.shape == (17, 23) and depth.dtype == np.float32
    assert 0 < depth.min() < depth.max() <= 80
    mirrored = depth_model.predict(image[:, ::-1].copy())[:, ::-1]
    averaged = depth_model.predict(image, flip_tta=True)
    np.testing.assert_allclose(averaged, (depth + mirrored) / 2, rtol=1e-5)
    if not isinstance(model, network.Denoises):
        for sampling in ({"num_inference_steps": 5}, {"noise": np.zeros((9, 12, 4))}):
            with pytest.raises(ValueError, match=f"'{name}' does no denoising"):
                depth_model.predict(image, **sampling)


@every_network
def test_half_precision_is_computed_in_and_everything_else_is_single(name):
    _, model, variables = small(name, dtype=jnp.bfloat16)

    def train(variables, *arguments):
        return model.apply(variables, *arguments, train=True, mutable=["batch_stats"])

    jaxpr, results = jax.make_jaxpr(train, return_shape=True)(variables, *inputs(model))
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.float32)}
    convolutions = [
        {str(atom.aval.dtype) for atom in equation.invars}
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    ]
    assert len(convolutions) >= 9
    assert all(types == {"bfloat16"} for types in convolutions), convolutions
    norms = [
        str(equation.invars[0].aval.dtype)
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name in ("rsqrt", "reduce_sum")
    ]
    assert len(norms) >= 18 and set(norms) == {"float32"}, norms


def equations(jaxpr):
    """All equations, those of nested functions and loops too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@every_network
def test_frozen_parts_work_as_in_inference(name):
    _, model, variables = small(name, frozen=("encoder",))
    run = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updated = run(variables, *inputs(model))
    changed = jax.tree.map(
        lambda new, old: bool((new != old).any()), updated["batch_stats"], variables["batch_stats"]
    )
    assert set(jax.tree.leaves(changed["encoder"])) == {False}
    assert set(jax.tree.leaves(changed["neck"])) == {True}


# ---- what the files offer ------------------------------------------------------------------------

CALLS = {
    "build": ["config", "dtype", "frozen"],
    "rules": ["config"],
    "infer": ["shapes"],
    "with_arguments": ["config", "arguments"],
    "arguments": ["config"],
}


@every_network
def test_the_file_offers_what_the_contract_says(name):
    file = registry.module("network", name)
    assert isinstance(file, network.Network) and file.__doc__
    assert {call: list(inspect.signature(getattr(file, call)).parameters) for call in CALLS} == (
        CALLS
    )
    assert issubclass(file.Config, network.NetworkConfig) and dataclasses.is_dataclass(file.Config)
    assert file.Config.__dataclass_params__.frozen
    assert file.OUTPUT in get_args(network.Output) and isinstance(file.INPUT, InputSpec)
    fields = {field.name for field in dataclasses.fields(file.Config)}
    assert set(file.UNTOLD) <= fields
    for pattern, named in file.FILES.items():
        re.compile(pattern)
        assert set(named) <= fields
    assert file.infer({"nothing.weight": (1,)}) is None
    for variant in file.VARIANTS:
        config = file.VARIANTS[variant]
        assert isinstance(config, file.Config) and config.name == name
        assert config.output in get_args(network.Output)
        assert isinstance(config.input_spec, InputSpec)
        assert file.with_arguments(config, file.arguments(config)) == config
        assert network.of(config) is file


@every_network
def test_the_module_has_the_capabilities_that_it_claims(name):
    _, model, variables = small(name)
    assert set(variables) <= {"params", "batch_stats"}
    assert model.config.name == name
    if isinstance(model.config, network.HasEncoder):
        encoder = registry.module("encoder", model.config.encoder.name)
        image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        alone = jax.eval_shape(encoder.Encoder(model.config.encoder).init, jax.random.key(0), image)
        inside = variables["params"]["encoder"]
        assert jax.tree.map(jnp.shape, inside) == jax.tree.map(jnp.shape, alone["params"])
    if isinstance(model, network.Denoises):
        offered = [method for method in vars(network.Denoises) if method[0] != "_"]
        ours = type(model)
        assert all(
            getattr(ours, method) is not getattr(network.Denoises, method) for method in offered
        )
        assert 1 <= model.num_inference_steps <= model.num_train_timesteps
    if isinstance(model, network.Recalibrates):
        depth_model = DepthModel(model, variables, model.config)
        picture = np.zeros((16, 24, 3), np.uint8)
        statistics = depth_model.recalibrate([picture], 1).recalibrated[1]
        assert jax.tree.leaves(statistics)
    else:
        with pytest.raises(ConfigError, match="steps"):
            DepthModel(model, variables, model.config).recalibrate(
                [np.zeros((16, 24, 3), np.uint8)], 1
            )


@every_network
def test_what_is_published_is_exported_and_the_rest_says_why_not(name, tmp_path):
    file, model, variables = small(name)
    depth_model = DepthModel(model, variables, model.config)
    path = tmp_path / "weights.safetensors"
    if isinstance(model.config, network.Published):
        assert file.rules(model.config)
        inference.export(depth_model, path)
        again = inference.load(path)
        assert jax.tree.all(jax.tree.map(np.array_equal, dict(again.variables), dict(variables)))
    else:
        assert not file.rules(model.config)
        with pytest.raises(ConfigError, match=rf"'{name}' is nobody's publication.*run directory"):
            inference.export(depth_model, path)
        assert not path.exists()


def test_a_network_is_imported_without_the_encoders_that_nobody_asked_for():
    code = (
        "import sys\n"
        "from diffdepth_jax import registry\n"
        "for name in registry.names('network'):\n"
        "    registry.module('network', name).VARIANTS['res18']\n"
        "print([name for name in sys.modules if name.startswith('diffdepth_jax.models.encoders.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == ["diffdepth_jax.models.encoders.resnet"]
