"""DPT against recordings of the authors' code, and what its files and configs do not say."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import diffdepth_jax
from diffdepth_jax import inference, registry
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.models.encoders import beit, hybrid_vit, vit
from diffdepth_jax.models.networks import dpt
from diffdepth_jax.models.networks.dpt import FILES, VARIANTS, Config
from diffdepth_jax.models.networks.network import expected_variables
from diffdepth_jax.weights import rules

TINY = Config(
    encoder=vit.Config(
        embed_dim=64, depth=4, num_heads=1, hidden_features=48, grid=2, taps=(0, 1, 2, 3)
    ),
    project_features=(4, 6, 8, 10),
    fused_features=8,
    output_features=4,
)
TINY_HYBRID = dataclasses.replace(
    TINY,
    encoder=hybrid_vit.Config(
        stem_features=32,
        depths=(1, 1, 1),
        widths=(128, 128, 128),
        embed_dim=64,
        depth=4,
        num_heads=1,
        hidden_features=48,
        grid=2,
        taps=(2, 3),
    ),
    project_features=(None, None, 8, 10),
)
TINY_BEIT = dataclasses.replace(
    TINY,
    encoder=beit.Config(
        embed_dim=64, depth=4, num_heads=2, hidden_features=48, grid=2, taps=(0, 1, 2, 3)
    ),
)
BACKBONES = {"vit": TINY, "hybrid": TINY_HYBRID, "beit": TINY_BEIT}
every_backbone = pytest.mark.parametrize("config", BACKBONES.values(), ids=BACKBONES)


def state_dict_of(config):
    rng = np.random.default_rng(0)
    shapes = rules.shapes(expected_variables(dpt.build(config)), dpt.rules(config))
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant", "tolerance"),
    # The recorded hybrid's float32 and float64 differ by 1e-5: small weights are standardised.
    [("dpt_beit_base_384", "beit_base_384", 5e-6), ("dpt_hybrid", "hybrid_384", 5e-5)],
)
def test_the_authors_recordings(name, variant, tolerance, network_case):
    case = network_case(name)
    model = diffdepth_jax.load(case.state_dict)
    assert model.config == VARIANTS[variant]
    assert model.output == "relative_disparity"
    prediction = jax.jit(model.model.apply)(model.variables, jnp.asarray(case.arrays["image"]))
    assert case.error("prediction", prediction) <= tolerance


@pytest.mark.parametrize(
    ("variant", "size", "count"),
    # In millions, as in MiDaS's table of models.
    [
        ("large_384", 384, 344),
        ("hybrid_384", 384, 123),
        ("beit_base_384", 384, 112),
        ("beit_large_384", 384, 344),
        ("beit_large_512", 512, 345),
    ],
)
def test_variants_have_the_published_parameter_counts(variant, size, count):
    config = VARIANTS[variant]
    params = expected_variables(dpt.build(config))["params"]
    published = rules.shapes({"params": params}, dpt.rules(config))
    weights = {name: shape for name, shape in published.items() if "_index" not in name}
    assert round(sum(int(np.prod(shape)) for shape in weights.values()) / 1e6) == count
    spec = config.input_spec
    assert spec.size == (size, size) and spec.keep_aspect and spec.bound == "minimal"
    assert (spec.multiple, spec.mean, spec.std) == (32, (0.5,) * 3, (0.5,) * 3)
    assert (spec.interpolation, spec.output_interpolation) == ("bicubic", "bicubic")
    assert not spec.output_align_corners


def test_sizes_of_the_networks_input():
    """As recorded from preprocessing, for images of 375 x 1242 and 480 x 640."""
    small, large = VARIANTS["large_384"].input_spec, VARIANTS["beit_large_512"].input_spec
    assert [small.input_size(375, 1242), small.input_size(480, 640)] == [(384, 1280), (384, 512)]
    assert [large.input_size(375, 1242), large.input_size(480, 640)] == [(512, 1696), (512, 672)]


@pytest.mark.parametrize(
    "stem",
    [
        "dpt_beit_large_512",
        "dpt_beit_large_384",
        "dpt_beit_base_384",
        "dpt_large_384",
        "dpt_hybrid_384",
        "dpt_large-midas-2f21e586",
        "dpt_hybrid-midas-501f0c75",
    ],
)
def test_published_files_are_recognised_by_name(stem):
    assert [fields for pattern, fields in FILES.items() if re.fullmatch(pattern, stem)] == [{}]


@every_backbone
def test_weights_determine_the_config(config):
    state_dict = state_dict_of(config)
    shapes = {name: array.shape for name, array in state_dict.items()}
    assert registry.matching("network", shapes) == ("dpt",)
    assert dpt.infer(shapes) == config
    unused = {
        name
        for name in shapes
        if re.search(r"model\.(fc_)?norm\.|\.head\.|refinenet4\.resConfUnit1|_index", name)
    }
    assert len(unused) >= 8
    fewer = {name: shape for name, shape in shapes.items() if name not in unused}
    assert dpt.infer(fewer) == config
    model = diffdepth_jax.load({name: state_dict[name] for name in fewer}, network="dpt")
    again = diffdepth_jax.load(state_dict)
    assert jax.tree.all(jax.tree.map(np.array_equal, model.variables, again.variables))


def test_what_weights_do_not_say_is_written_with_them(tmp_path):
    encoder = dataclasses.replace(
        TINY.encoder, num_heads=4, depth=5, taps=(0, 2, 3, 4), layer_norm_eps=1e-5
    )
    config = dataclasses.replace(TINY, encoder=encoder)
    model = dpt.build(config)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), expected_variables(model))
    path = tmp_path / "weights.safetensors"
    assert inference.export(DepthModel(model, variables, config), path) == []
    assert diffdepth_jax.load(path).config == config
    written = safetensors.numpy.load_file(path)
    # Entries that the authors' strict loading requires, with values that have no effect.
    assert (written["pretrained.model.norm.weight"] == 1).all()
    assert written["pretrained.model.head.weight"].shape == (1000, 64)
    assert not written["scratch.refinenet4.resConfUnit1.conv1.weight"].any()


def test_arguments_of_other_programs_are_ignored():
    arguments = {"encoder": "vitl", "batch_size": 4, "implementation": None}
    assert dpt.with_arguments(TINY, arguments) == TINY
    with pytest.raises(ConfigError, match=r"args\.implementation"):
        dpt.with_arguments(TINY, {"implementation": "mine"})


@every_backbone
def test_disparity_has_the_images_size_and_is_never_negative(config):
    model = dpt.build(config)
    for size in ((32, 48), (48, 80)):
        image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        found = jax.eval_shape(model.apply, expected_variables(model), image)
        assert (found.shape, found.dtype) == ((2, *size, 1), jnp.float32)
    with pytest.raises(ValueError, match=r"40x48 pixels.*multiples of 16"):
        jax.eval_shape(
            model.apply, expected_variables(model), jax.ShapeDtypeStruct((1, 40, 48, 3), "f4")
        )


def test_images_of_a_batch_do_not_affect_each_other():
    model = dpt.build(TINY)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) * 0.3, jnp.float32),
        expected_variables(model),
    )
    images = jnp.asarray(rng.standard_normal((2, 32, 32, 3)), jnp.float32)
    run = jax.jit(model.apply)
    one, other = run(variables, images), run(variables, images.at[1].multiply(-2.0))
    assert one.max() > 0 and (one >= 0).all()
    np.testing.assert_array_equal(one[0], other[0])
    assert not np.allclose(one[1], other[1])


def test_a_frozen_encoder_drops_no_paths():
    encoder = dataclasses.replace(TINY.encoder, drop_path_rate=0.9)
    config = dataclasses.replace(TINY, encoder=encoder)
    image = jnp.ones((1, 32, 32, 3))
    shapes = expected_variables(dpt.build(config))
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01), shapes)
    frozen = dpt.build(config, frozen=("encoder",))
    keys = {"drop_path": jax.random.key(0)}
    wanted = frozen.apply(variables, image)
    np.testing.assert_array_equal(frozen.apply(variables, image, train=True, rngs=keys), wanted)
    with pytest.raises(Exception, match="drop_path"):
        dpt.build(config).apply(variables, image, train=True)


def test_transformers_resizes_differently():
    config = dataclasses.replace(VARIANTS["large_384"], implementation="transformers")
    spec = config.input_spec
    assert spec.interpolation == "pillow" and not spec.keep_aspect and spec.size == (384, 384)
    config = dataclasses.replace(VARIANTS["beit_large_512"], implementation="transformers")
    assert config.input_spec.keep_aspect


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"project_features": (None, 6, 8, 10)}, "has a class token"),
        ({"project_features": (0, 6, 8, 10)}, "must be positive"),
        ({"fused_features": 7}, "fused_features even"),
        ({"encoder": dataclasses.replace(TINY.encoder, patch_size=8)}, "a map of stride 8"),
    ],
)
def test_impossible_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)


def test_the_published_hybrid_states_factors_that_have_no_effect():
    config = dataclasses.replace(TINY_HYBRID, output_features=32, implementation="transformers")
    layout = dpt.TRANSFORMERS
    table = layout.rules(config)
    shapes = rules.shapes(expected_variables(dpt.build(config)), table)
    described = layout.describe(config) | {"reassemble_factors": [1, 1, 1, 0.5]}
    assert layout.infer(shapes, described) == layout.infer(shapes, layout.describe(config))


def test_configs_that_transformers_lacks_are_an_error():
    with pytest.raises(ConfigError, match="only supports 32"):
        dpt.TRANSFORMERS.describe(TINY)
    with pytest.raises(ConfigError, match="no DPT with the encoder 'swin'"):
        dpt.TRANSFORMERS.rules(VARIANTS["swin_large_384"])
    config = dataclasses.replace(TINY, output_features=32)
    table = dpt.TRANSFORMERS.rules(config)
    shapes = rules.shapes(expected_variables(dpt.build(config)), table)
    assert dpt.TRANSFORMERS.infer(shapes, {}) is not None
    for content in ({"readout_type": "add"}, {"reassemble_factors": [2, 1, 1, 0.5]}):
        with pytest.raises(ValueError, match=rf"config.json: {next(iter(content))} is"):
            dpt.TRANSFORMERS.infer(shapes, content)
