"""What every registered network promises, checked on a small one of each."""

import ast
import dataclasses
import functools
import inspect
import json
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
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.state import TrainState
from diffdepth_jax.typing import InputSpec
from diffdepth_jax.weights import rules
from tests.models.networks.small_configs import SEEDS, SMALL

every_network = pytest.mark.parametrize("name", registry.names("network"))
every_network_of_transformers = pytest.mark.parametrize(
    "name",
    [name for name in registry.names("network") if registry.module("network", name).TRANSFORMERS],
)


@functools.cache
def small(name, **options):
    """The network's file, a small module of it, and variables."""
    file = registry.module("network", name)
    config = config_lib.chosen(
        "network", {"name": name, **SMALL[name]}, resolve=registry.module, path="model"
    )
    model = file.build(config, **options)
    shapes = network.expected_variables(model)
    rng = np.random.default_rng(SEEDS.get(name, 0))

    def draw(path, leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1
        offset = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return jnp.asarray(offset + scale * rng.standard_normal(leaf.shape), jnp.float32)

    return file, model, jax.tree_util.tree_map_with_path(draw, shapes)


def size_of_inputs(model):
    """Small height and width that the network takes."""
    spec = model.config.input_spec
    if spec.size and not spec.keep_aspect:
        return spec.size
    units = -(-16 // spec.multiple)
    return units * spec.multiple, (units + max(1, units // 2)) * spec.multiple


def inputs(model):
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.standard_normal((2, *size_of_inputs(model), 3)), jnp.float32)
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


@pytest.mark.parametrize("name", ["dpt", "midas"])
def test_disparity_has_no_limit_in_metres(name):
    _, model, _ = small(name)
    with pytest.raises(ValueError, match=rf"max_depth is 80\.0 metres, but '{name}' predicts"):
        dataclasses.replace(model.config, max_depth=80.0)


@every_network
def test_any_image_gets_depth_of_its_own_size(name):
    _, model, variables = small(name)
    depth_model = DepthModel(model, variables, model.config)
    image = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
    depth = depth_model.predict(image)
    assert depth.shape == (17, 23) and depth.dtype == np.float32
    assert (0 if model.config.output == "metric_depth" else -1e-9) < depth.min() < depth.max()
    assert depth.max() <= (model.config.max_depth or np.inf)
    mirrored = depth_model.predict(image[:, ::-1].copy())[:, ::-1]
    averaged = depth_model.predict(image, flip_tta=True)
    # If images are resized, small values are differences of large ones.
    atol = 1e-5 * depth.max() if model.config.input_spec.size else 0
    np.testing.assert_allclose(averaged, (depth + mirrored) / 2, rtol=1e-5, atol=atol)
    if not isinstance(model, network.Denoises):
        for sampling in ({"num_inference_steps": 5}, {"noise": np.zeros((9, 12, 4))}):
            with pytest.raises(ValueError, match=f"'{name}' does not denoise"):
                depth_model.predict(image, **sampling)


@every_network
def test_half_precision_is_used_for_convolutions_and_single_for_the_rest(name):
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
    # The codec's last convolution gives the logit of depth, which is not rounded.
    logits = int(hasattr(model.config, "codec"))
    assert convolutions.count({"float32"}) == logits, convolutions
    assert convolutions.count({"bfloat16"}) == len(convolutions) - logits, convolutions
    norms = [
        str(equation.invars[0].aval.dtype)
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name in ("rsqrt", "reduce_sum")
    ]
    assert len(norms) >= 18 and set(norms) == {"float32"}, norms


def equations(jaxpr):
    """All equations, including those of nested functions and loops."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@every_network
def test_frozen_parts_work_as_in_inference(name):
    changed, results = {}, {}
    for frozen in ((), ("encoder",)):
        _, model, variables = small(name, frozen=frozen)
        run = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
        results[frozen], updated = run(variables, *inputs(model))
        changed[frozen] = {
            part: {bool((new != old).any()) for new, old in zip(*pairs, strict=True)}
            for part in variables.get("batch_stats", {})
            if (
                pairs := [
                    jax.tree.leaves(tree["batch_stats"][part]) for tree in (updated, variables)
                ]
            )
        }
    if "batch_stats" not in variables:
        inferred = jax.jit(model.apply)(variables, *inputs(model))
        for trained in jax.tree.leaves(results):
            np.testing.assert_allclose(trained, inferred, rtol=1e-5, atol=1e-5 * inferred.max())
        return
    assert changed[()] == {**changed[("encoder",)], "encoder": {True}}
    assert changed[("encoder",)]["encoder"] == {False}
    if hasattr(model.config, "neck"):
        assert changed[("encoder",)]["neck"] == {True}


# ---- what the modules offer ----------------------------------------------------------------------

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
    assert set(file.UNDETERMINED) <= fields
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
        image = jax.ShapeDtypeStruct((1, *size_of_inputs(model), 3), jnp.float32)
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
def test_published_networks_are_exported_and_others_say_why_not(name, tmp_path):
    file, model, variables = small(name)
    depth_model = DepthModel(model, variables, model.config)
    path = tmp_path / "weights.safetensors"
    if isinstance(model.config, network.Published):
        assert file.rules(model.config)
        inference.export(depth_model, path)
        again = inference.load(path)
        assert jax.tree.all(jax.tree.map(np.array_equal, dict(again.variables), dict(variables)))
        arguments = inputs(model)
        np.testing.assert_array_equal(
            *(jax.jit(each.apply)(variables, *arguments) for each in (again.model, model))
        )
    else:
        assert not file.rules(model.config)
        with pytest.raises(ConfigError, match=rf"'{name}' is not published.*run directory"):
            inference.export(depth_model, path)
        assert not path.exists()


@every_network_of_transformers
def test_the_transformers_layout_is_read_and_written(name, tmp_path):
    file, model, variables = small(name)
    layout = file.TRANSFORMERS
    assert isinstance(layout, network.TransformersLayout)
    table = layout.rules(model.config)
    state_dict = rules.export(variables, table, rules.names(variables, table))
    shapes = {key: value.shape for key, value in state_dict.items()}
    described = json.loads(json.dumps(layout.describe(model.config)))
    assert described["model_type"] == layout.model_type
    assert json.loads(json.dumps(layout.preprocessor(model.config)))
    assert layout.infer(shapes, described) == model.config
    lost = inference.export(DepthModel(model, variables, model.config), tmp_path, "transformers")
    again = inference.load(tmp_path)
    assert not lost and again.config == model.config
    assert jax.tree.all(jax.tree.map(np.array_equal, dict(again.variables), dict(variables)))
    assert layout.infer({"nothing.weight": (1,)}, {}) is None
    if isinstance(model.config, network.Published):  # load distinguishes the two layouts
        theirs = file.rules(model.config)
        names = rules.names(variables, theirs)
        published = rules.export(variables, theirs, names)
        shapes = {key: value.shape for key, value in published.items()}
        assert layout.infer(shapes, {}) is None and file.infer(shapes) is not None
    assert file.infer({key: value.shape for key, value in state_dict.items()}) is None


@every_network
def test_a_run_of_it_is_loaded(name, tmp_path):
    _, model, variables = small(name)
    state = TrainState(
        step=jnp.int32(3),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state={},
        ema_params={},
    )
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(3, state, {"model": config_lib.to_mapping(model.config)}, b"{}", {})
    again = inference.load(tmp_path)
    assert again.config == model.config
    for (path, leaf), (_, want) in zip(
        jax.tree.leaves_with_path(again.variables),
        jax.tree.leaves_with_path(variables),
        strict=True,
    ):
        np.testing.assert_array_equal(leaf, want, err_msg=jax.tree_util.keystr(path))
    arguments = inputs(model)
    shape = jax.eval_shape(again.model.apply, again.variables, *arguments).shape
    assert shape == (*arguments[0].shape[:3], 1)


def encoders_imported_after(code):
    code = (
        "import sys\n"
        "from diffdepth_jax import config, registry\n"
        f"{code}\n"
        "print([name for name in sys.modules if name.startswith('diffdepth_jax.models.encoders.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stdout))


def test_a_network_imports_only_the_encoders_that_it_uses():
    """One variant of each network imports only the encoders that it uses."""
    variants = {
        name: next(iter(registry.module("network", name).VARIANTS))
        for name in registry.names("network")
    }
    asked, used = [], set()
    for name, variant in variants.items():
        asked.append(f"registry.module('network', {name!r}).VARIANTS[{variant!r}]")
        config = registry.module("network", name).VARIANTS[variant]
        used |= {encoder.name for encoder in encoders_of(config)}
    assert variants["diffusion_depth"] == "res18" and "resnet" in used
    alone = [f"registry.module('encoder', {name!r})" for name in sorted(used)]
    assert encoders_imported_after("\n".join(asked)) <= encoders_imported_after("\n".join(alone))


def encoders_of(config):
    """The encoder configs inside a network's config, at any depth."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "encoder":
            yield value
        elif dataclasses.is_dataclass(value):
            yield from encoders_of(value)
