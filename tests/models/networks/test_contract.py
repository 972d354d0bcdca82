"""What every registered network promises, on a small one of each."""

import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax import config as config_lib
from diffdepth_jax import registry
from diffdepth_jax.inference import DepthModel

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
    network = registry.module("network", name)
    config = config_lib.chosen(
        "network", {"name": name, **SMALL, **MORE[name]}, resolve=registry.module, path="model"
    )
    model = network.build(config, **options)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1
        offset = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return jnp.asarray(offset + scale * rng.standard_normal(leaf.shape), jnp.float32)

    return network, model, jax.tree_util.tree_map_with_path(draw, shapes)


def inputs(model, size=(16, 24)):
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.standard_normal((2, *size, 3)), jnp.float32)
    if not hasattr(model, "latent_shape"):
        return (image,)
    return image, jnp.asarray(rng.standard_normal(model.latent_shape(image.shape)), jnp.float32)


@every_network
def test_variables_are_single_precision_and_the_config_survives_json(name):
    network, model, _ = small(name, dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init_variables, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    mapping = config_lib.to_mapping(model.config)
    again = config_lib.from_mapping(network.Config, mapping, resolve=registry.module)
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
    if not hasattr(model, "latent_shape"):
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
