"""Depth Anything against recordings of the authors' code, and what its files do not say."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffdepth_jax
from diffdepth_jax import inference
from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.models.encoders import dinov2
from diffdepth_jax.models.networks import depth_anything
from diffdepth_jax.models.networks.depth_anything import FILES, TRANSFORMERS, VARIANTS, Config
from diffdepth_jax.models.networks.network import expected_variables
from diffdepth_jax.weights import rules

TINY = Config(
    encoder=dinov2.Config(
        embed_dim=64, depth=8, num_heads=1, taps=(1, 3, 5, 7), hidden_features=64, grid=3
    ),
    project_features=(4, 6, 8, 10),
    fused_features=8,
    output_features=4,
)
CASES = {
    "da1_vits": {"version": 1},
    "da2_vits": {"version": 2},
    "da2_metric_vits": {"version": 2, "max_depth": 20.0},
}


def shapes_of(config, table):
    expected = expected_variables(depth_anything.build(config))
    return rules.shapes(expected, table)


def state_dict_of(config):
    rng = np.random.default_rng(0)
    shapes = shapes_of(config, depth_anything.rules(config))
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_authors_recordings(name, network_case):
    case, fields = network_case(name), CASES[name]
    model = diffdepth_jax.load(case.state_dict, network="depth_anything", **fields)
    variant = {1: "v1_small", 2: "v2_small"}[fields["version"]]
    wanted = VARIANTS["v2_small_indoor" if "max_depth" in fields else variant]
    assert model.config == wanted
    image = jnp.asarray(case.arrays["image"])
    prediction = jax.jit(model.model.apply)(model.variables, image)
    assert case.error("prediction", prediction) <= 5e-6
    assert model.output == ("metric_depth" if "max_depth" in fields else "relative_disparity")


def test_taps_and_their_class_tokens(network_case):
    case = network_case("da1_vits")
    model = diffdepth_jax.load(case.state_dict, version=1)
    encoder = dinov2.Encoder(model.config.encoder)
    variables = {"params": model.variables["params"]["encoder"]}
    features, _ = jax.jit(encoder.apply, static_argnames="method")(
        variables, jnp.asarray(case.arrays["image"]), method="with_class_tokens"
    )
    for tap, array in enumerate(features):
        tokens = array.reshape(1, -1, array.shape[-1])
        assert case.error(f"tap{tap}", tokens) <= 5e-6


@pytest.mark.parametrize(
    ("stem", "fields"),
    [
        ("depth_anything_vitl14", {"version": 1}),
        ("depth_anything_v2_vitb", {"version": 2}),
        ("depth_anything_v2_vits_fp16", {"version": 2}),
        ("depth_anything_v2_metric_hypersim_vits", {"version": 2, "max_depth": 20.0}),
        ("depth_anything_v2_metric_vkitti_vitl", {"version": 2, "max_depth": 80.0}),
        ("depth_anything_v2", None),
        ("depth_anything_metric_depth_indoor", None),
        ("my_depth_anything_v2_vits", None),
    ],
)
def test_published_names_supply_what_weights_do_not_say(stem, fields):
    found = [named for pattern, named in FILES.items() if re.fullmatch(pattern, stem)]
    assert found == ([fields] if fields else [])


def test_without_a_published_name_the_caller_is_asked_for_the_version():
    state_dict = state_dict_of(TINY)
    with pytest.raises(WeightsError, match=r"version: use load\(\.\.\., version=1 or version=2\)"):
        diffdepth_jax.load(state_dict)
    taps = {
        version: diffdepth_jax.load(state_dict, version=version).config.encoder.taps
        for version in (1, 2)
    }
    assert taps == {1: (4, 5, 6, 7), 2: (1, 3, 5, 7)}
    with pytest.raises(ConfigError, match="version is 3"):
        diffdepth_jax.load(state_dict, version=3)
    with pytest.raises(ConfigError, match=r"V1 is relative.*'zoedepth'"):
        diffdepth_jax.load(state_dict, version=1, max_depth=80.0)
    assert diffdepth_jax.load(state_dict, version=2, max_depth=80.0).output == "metric_depth"


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_names_and_shapes_determine_the_rest(gated, version):
    encoder = dataclasses.replace(TINY.encoder, gated=gated, hidden_features=24)
    config = dataclasses.replace(TINY, encoder=encoder, version=version)
    model = diffdepth_jax.load(state_dict_of(config), version=version)
    assert model.config == config


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_inferred_from_its_weights(name):
    config = VARIANTS[name]
    shapes = shapes_of(config, depth_anything.rules(config))
    inferred = depth_anything.infer(shapes)
    fields = {"version": config.version, "max_depth": config.max_depth}
    assert dataclasses.replace(inferred, **fields) == config
    described = TRANSFORMERS.describe(config)
    theirs = shapes_of(config, TRANSFORMERS.rules(config))
    assert TRANSFORMERS.infer(theirs, described) == config


def test_unused_entries_may_be_missing_and_are_written():
    state_dict = state_dict_of(TINY)
    unused = [
        name for name in state_dict if "mask_token" in name or "refinenet4.resConfUnit1" in name
    ]
    assert len(unused) == 5
    rest = {name: array for name, array in state_dict.items() if name not in unused}
    model = diffdepth_jax.load(rest, version=2)
    table = depth_anything.rules(TINY)
    written = rules.export(model.variables, table, rules.names(model.variables, table))
    assert {name: a.shape for name, a in written.items()} == {
        name: a.shape for name, a in state_dict.items()
    }
    assert not any(written[name].any() for name in unused)


def test_an_image_that_does_not_divide_into_patches_is_refused():
    module = depth_anything.build(TINY)
    image = jax.ShapeDtypeStruct((1, 28, 30, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"28x30 pixels.*multiples of the patch size 14"):
        jax.eval_shape(module.init, jax.random.key(0), image)


def test_each_version_resizes_its_own_way():
    one, two = (dataclasses.replace(TINY, version=version).input_spec for version in (1, 2))
    assert (one.output_align_corners, two.output_align_corners) == (False, True)
    assert one.input_size(480, 640) == two.input_size(480, 640) == (518, 686)
    assert one.input_size(97, 143) == (518, 770)
    theirs = dataclasses.replace(TINY, implementation="transformers").input_spec
    assert theirs.input_size(97, 143) == (350, 518)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"out_indices": [1, 2, 3, 8]}, r"out_indices is \[1, 2, 3, 8\].*\[2, 4, 6, 8\] \(V2\)"),
        ({"out_indices": "all"}, "out_indices is 'all'"),
        ({"model_type": "dinov3"}, "backbone_config.model_type is 'dinov3'.*'dinov2'"),
        ({"num_attention_heads": 3}, "num_heads 3"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
    ],
)
def test_an_unsupported_config_json_is_refused(change, complaint):
    described = TRANSFORMERS.describe(TINY)
    described["backbone_config"] |= change
    shapes = shapes_of(TINY, TRANSFORMERS.rules(TINY))
    with pytest.raises(ValueError, match=complaint):
        TRANSFORMERS.infer(shapes, described)


def test_an_old_config_json_leaves_out_the_defaults():
    """As transformers wrote them before version 4.40: without the values that are its defaults."""
    config = VARIANTS["v1_base"]
    shapes = shapes_of(config, TRANSFORMERS.rules(config))
    described = {
        "model_type": "depth_anything",
        "backbone": None,
        "backbone_config": {"model_type": "dinov2", "out_features": ["stage9"]}
        | {"out_indices": [9, 10, 11, 12], "image_size": 518, "reshape_hidden_states": False},
    }
    found = TRANSFORMERS.infer(shapes, described)
    assert found == dataclasses.replace(config, implementation="transformers")
    del described["backbone_config"]["out_indices"]
    described["backbone_config"]["out_features"] = ["stage3", "stage6", "stage9", "stage12"]
    assert TRANSFORMERS.infer(shapes, described).version == 2


def test_half_precision_stays_near(network_case):
    case = network_case("da2_vits")
    model = diffdepth_jax.load(case.state_dict, version=2, dtype=jnp.bfloat16)
    prediction = jax.jit(model.model.apply)(model.variables, jnp.asarray(case.arrays["image"]))
    assert prediction.dtype == jnp.float32
    assert case.error("prediction", prediction) <= 0.02


def test_export_keeps_what_weights_do_not_say(tmp_path):
    config = dataclasses.replace(TINY, max_depth=12.5, implementation="transformers")
    model = diffdepth_jax.load(
        state_dict_of(TINY), version=2, max_depth=12.5, implementation="transformers"
    )
    assert model.config == config
    assert inference.export(model, tmp_path / "weights.safetensors") == []
    assert inference.load(tmp_path / "weights.safetensors").config == config
