"""ZoeDepth as a whole: its core, its variants, what files and callers specify."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffdepth_jax import config as config_lib
from diffdepth_jax import inference, registry
from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.models.networks import zoedepth
from diffdepth_jax.models.networks.zoedepth_heads import MetricHeads
from diffdepth_jax.typing import IMAGENET_MEAN, IMAGENET_STD
from diffdepth_jax.weights import rules

BEIT = {
    "name": "dpt",
    "encoder": {"name": "beit", "embed_dim": 8, "depth": 4, "num_heads": 2, "hidden_features": 16}
    | {"grid": 2, "taps": (0, 1, 2, 3)},
    "project_features": (4, 6, 8, 10),
    "fused_features": 8,
    "output_features": 4,
}
DINOV2 = {
    "name": "depth_anything",
    "encoder": {"name": "dinov2", "embed_dim": 8, "num_heads": 1, "hidden_features": 16}
    | {"depth": 4, "taps": (0, 1, 2, 3), "grid": 3},
    "version": 1,
    "project_features": (4, 6, 8, 10),
    "fused_features": 8,
    "output_features": 4,
}
WIDTHS = {"num_bins": 6, "embedding_features": 8, "seed_features": 10}
WIDTHS |= {"projector_features": 12, "distribution_features": 14}
NK = {"domains": ("nyu", "kitti"), "attractors": (16,) * 4, "router_features": 16}
NK |= {"router_depth": 2, "router_hidden_features": 20}
SMALL = {
    "n": {"core": BEIT, "heads": WIDTHS},
    "k": {"core": BEIT, "heads": WIDTHS | {"bins": "normed"}, "max_depth": 80.0},
    "nk": {"core": BEIT, "heads": WIDTHS | NK},
    "depth_anything": {"core": DINOV2, "heads": WIDTHS},
}
every_kind = pytest.mark.parametrize("kind", SMALL)


def config_of(kind, **fields):
    mapping = {**SMALL[kind], **fields}
    return config_lib.from_mapping(zoedepth.Config, mapping, resolve=registry.module)


@functools.cache
def small(kind):
    """A small model with random weights."""
    config = config_of(kind)
    model = zoedepth.build(config)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1
        offset = 1.0 if path[-1].key.startswith("scale") else 0.0
        return jnp.asarray(offset + scale * rng.standard_normal(leaf.shape), jnp.float32)

    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    return DepthModel(model, jax.tree_util.tree_map_with_path(draw, shapes), config)


def reconfigured(model, **fields):
    """The same weights with other values of fields that they do not determine."""
    config = dataclasses.replace(model.config, **fields)
    return DepthModel(zoedepth.build(config), model.variables, config)


def state_dict_of(model):
    table = zoedepth.rules(model.config)
    return rules.export(model.variables, table, rules.names(model.variables, table))


def noise(height, width, batch=1):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((batch, height, width, 3)), jnp.float32)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_depth_comes_from_the_heads_on_top_of_the_core():
    depth_model = small("depth_anything")
    model, params = depth_model.model, depth_model.variables["params"]
    side = depth_model.input_spec.multiple
    image = noise(2 * side, 3 * side, 2)
    core = registry.module("network", model.config.core.name).build(model.config.core)
    heads = MetricHeads(model.config.heads)

    @jax.jit
    def expected(image):
        decoded = core.apply({"params": params["core"]}, image, method="decode")
        return heads.apply({"params": params["heads"]}, decoded)

    want = expected(image)
    got = jax.jit(model.apply)(depth_model.variables, image)
    assert got.shape == (2, 2 * side, 3 * side, 1) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert got.std() > 1e-4 * got.mean() > 0


@every_kind
def test_weights_are_recognised(kind, tmp_path):
    model = small(kind)
    weights = state_dict_of(model)
    again = inference.load(weights)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, dict(again.variables), dict(model.variables))
    name = {
        "n": "ZoeD_M12_N",
        "k": "ZoeD_M12_K",
        "nk": "ZoeD_M12_NK",
        "depth_anything": "depth_anything_metric_depth_indoor",
    }[kind]
    path = tmp_path / f"{name}.safetensors"
    save_file(weights, path)
    assert inference.load(path).config == model.config


def test_a_missing_entry_of_the_core_is_named():
    weights = state_dict_of(small("n"))
    del weights["core.core.scratch.refinenet2.out_conv.weight"]
    with pytest.raises(WeightsError, match="core/head/fusion"):
        inference.load(weights, network="zoedepth")


def test_the_range_of_normed_bins_is_80_m_unless_the_caller_says_otherwise():
    weights = state_dict_of(small("k"))
    published, hub = inference.load(weights), inference.load(weights, max_depth=10.0)
    assert (published.config.max_depth, hub.config.max_depth) == (80.0, 10.0)
    image = noise(64, 96)
    far, near = (jax.jit(m.model.apply)(m.variables, image) for m in (published, hub))
    np.testing.assert_allclose((far - 1e-3) / (80 - 1e-3), (near - 1e-3) / (10 - 1e-3), rtol=1e-5)
    with pytest.raises(ConfigError, match="max_depth is None"):
        inference.load(weights, max_depth=None)


def test_predictions_from_other_bins_are_only_clipped():
    limited = inference.load(state_dict_of(small("n")), max_depth=2.0).config
    assert limited.max_depth == 2.0 and limited.depth_range is small("n").config.depth_range is None
    unbounded = reconfigured(small("n"), input_size=(32, 64))
    depth = unbounded.predict(picture(30, 50), flip_tta=False)
    limit = float(np.median(depth))
    config = dataclasses.replace(unbounded.config, max_depth=limit)
    limited = dataclasses.replace(unbounded, config=config)
    clipped = limited.predict(picture(30, 50), flip_tta=False)
    np.testing.assert_array_equal(clipped, np.minimum(depth, np.float32(limit)))


def test_images_are_prepared_as_published():
    half = (0.5, 0.5, 0.5)
    wanted = {
        "n": ((384, 512), 32, half, half),
        "k": ((384, 768), 32, half, half),
        "nk": ((384, 512), 32, half, half),
        "depth_anything": ((392, 518), 14, IMAGENET_MEAN, IMAGENET_STD),
    }
    for kind, expected in wanted.items():
        spec = small(kind).input_spec
        assert (spec.size, spec.multiple, spec.mean, spec.std) == expected
        assert (spec.bound, spec.keep_aspect, spec.padding, spec.flip_tta) == (
            "minimal",
            True,
            3.0,
            True,
        )
        assert (spec.interpolation, spec.align_corners) == ("bilinear", True)
        assert (spec.output_interpolation, spec.output_align_corners) == ("bicubic", False)
    variants = {name: zoedepth.VARIANTS[name].input_spec for name in zoedepth.VARIANTS}
    assert variants["k"].size == (384, 768) and variants["nk"].size == (384, 512)
    assert variants["depth_anything_outdoor"].size == (392, 518)
    authors_evaluation = config_of("n", keep_aspect=False, padding=0.0, input_size=(64, 96))
    assert authors_evaluation.input_spec.input_size(480, 640) == (64, 96)


@every_kind
def test_what_weights_do_not_say_is_exported_with_them(kind, tmp_path):
    model = small(kind)
    heads = dataclasses.replace(model.config.heads, temperatures=(0.1, 20.0))
    fields = {"input_size": (64, 96), "keep_aspect": False, "padding": 1.0, "min_depth": 0.5}
    model = reconfigured(model, heads=heads, max_depth=70.0, **fields)
    assert not inference.export(model, tmp_path / "weights.safetensors")
    assert inference.load(tmp_path / "weights.safetensors").config == model.config


def test_an_images_domain_does_not_depend_on_the_rest_of_the_batch():
    model = reconfigured(small("nk"), input_size=(32, 64))
    images = [picture(30, 50, seed) for seed in range(4)]
    alone = [model.predict(image) for image in images]
    together = model.predict(images, batch_size=3)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("n", {"core": {"name": "regression", "encoder": {"name": "resnet"}}}, "dpt or depth_any"),
        ("depth_anything", {"core": DINOV2 | {"version": 2}}, r"core\.version=1"),
        ("n", {"heads": WIDTHS | {"attractors": (2, 1)}}, "attractors"),
        ("k", {"max_depth": None}, "max_depth is None"),
        ("n", {"min_depth": 0.0}, "min_depth is 0"),
        ("k", {"min_depth": 90.0}, "min_depth is 90"),
        ("n", {"input_size": (0, 4)}, "size is"),
        ("n", {"padding": -1.0}, "padding is -1"),
    ],
)
def test_an_impossible_network_is_refused(kind, fields, message):
    with pytest.raises(ConfigError, match=message):
        config_of(kind, **fields)


@pytest.mark.parametrize(
    "arguments", [{"core": 3}, {"max_depth": "far"}, {"heads": {"temperatures": (1.0,)}}]
)
def test_impossible_arguments_are_refused(arguments):
    config = small("n").config
    assert zoedepth.with_arguments(config, {"batch_size": 4}) == config
    with pytest.raises(WeightsError, match=next(iter(arguments))):
        zoedepth.with_arguments(config, arguments)
