import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.config import from_mapping, to_mapping
from diffdepth_jax.models.encoders import mpvit
from diffdepth_jax.weights.rules import Skip

TINY = mpvit.Config(embed_dims=(16, 24), num_layers=(1, 2), num_paths=(1, 2), mlp_ratios=(2.0, 1.5))


def official_shapes(config: mpvit.Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the release's encoder, aliases of shared modules included."""
    shapes = {}

    def add(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def add_norm(name, width):
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{entry}"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def add_conv_norm(name, features, inputs, size):
        add(f"{name}.conv", features, inputs, size, size, bias=False)
        add_norm(f"{name}.bn", features)

    def add_position(name, width):
        add(f"{name}.cpe.proj", width, 1, 3, 3)

    def add_relative_position(name, width):
        for index, (size, heads) in enumerate(((3, 2), (5, 3), (7, 3))):
            add(f"{name}.crpe.conv_list.{index}", width // 8 * heads, 1, size, size)

    first = config.embed_dims[0]
    add_conv_norm("stem.0", first // 2, 3, 3)
    add_conv_norm("stem.1", first, first // 2, 3)
    for stage, width in enumerate(config.embed_dims):
        outputs = config.embed_dims[min(stage + 1, len(config.embed_dims) - 1)]
        hidden = int(width * config.mlp_ratios[stage])
        for path in range(config.num_paths[stage]):
            patch = f"patch_embed_stages.{stage}.patch_embeds.{path}.patch_conv"
            add(f"{patch}.dwconv", width, 1, 3, 3, bias=False)
            add(f"{patch}.pwconv", width, width, 1, 1, bias=False)
            add_norm(f"{patch}.bn", width)
            here = f"mhca_stages.{stage}.mhca_blks.{path}"
            add_position(here, width)
            add_relative_position(here, width)
            for layer in range(config.num_layers[stage]):
                block = f"{here}.MHCA_layers.{layer}"
                add_position(block, width)
                add_relative_position(block, width)
                add_relative_position(f"{block}.factoratt_crpe", width)
                add(f"{block}.factoratt_crpe.qkv", 3 * width, width)
                add(f"{block}.factoratt_crpe.proj", width, width)
                add(f"{block}.mlp.fc1", hidden, width)
                add(f"{block}.mlp.fc2", width, hidden)
                add(f"{block}.norm1", width)
                add(f"{block}.norm2", width)
        local = f"mhca_stages.{stage}.InvRes"
        add_conv_norm(f"{local}.conv1", width, width, 1)
        add(f"{local}.dwconv", width, 1, 3, 3, bias=False)
        add_norm(f"{local}.norm", width)
        add_conv_norm(f"{local}.conv2", width, width, 1)
        joined = width * (config.num_paths[stage] + 1)
        add_conv_norm(f"mhca_stages.{stage}.aggregate", outputs, joined, 1)
    return shapes


def test_recorded_features(encoder_case):
    """Also shows which aliases are in effect: in the recording each has different values."""
    case = encoder_case("mpvit")
    config = mpvit.infer(case.shapes)
    assert config == mpvit.VARIANTS["small"]
    assert official_shapes(config) == case.shapes
    case.check(mpvit, config)


@pytest.mark.parametrize("variant", mpvit.VARIANTS)
def test_every_variant_is_inferred_and_filled(variant, round_trip):
    config = mpvit.VARIANTS[variant]
    assert mpvit.infer(official_shapes(config)) == config
    small = dataclasses.replace(config, embed_dims=(16, 8, 24, 32), drop_path_rate=0.2)
    shapes = official_shapes(small)
    assert mpvit.infer(shapes) == small
    written = round_trip(mpvit, small, shapes)
    assert all("num_batches" in name for name in shapes if name not in written)
    layer = "mhca_stages.1.mhca_blks.2.MHCA_layers.0"
    for alias in ("cpe.proj", "crpe.conv_list.1", "factoratt_crpe.crpe.conv_list.1"):
        last = alias.removeprefix("factoratt_crpe.").replace("crpe.", "factoratt_crpe.crpe.")
        read = f"mhca_stages.1.mhca_blks.2.MHCA_layers.{small.num_layers[1] - 1}.{last}.weight"
        np.testing.assert_array_equal(written[f"{layer}.{alias}.weight"], written[read])
    assert from_mapping(mpvit.Config, json.loads(json.dumps(to_mapping(config)))) == config


def test_published_parameter_counts():
    """Against the counts in the published code, which include a classifier of 1000 classes."""
    published = {"tiny": 5843736, "xsmall": 10573448, "small": 22892400, "base": 74845976}
    for variant, total in published.items():
        config = mpvit.VARIANTS[variant]
        shapes = official_shapes(config)
        aliases = [row.pattern for row in mpvit.rules(config) if isinstance(row, Skip)]
        assert aliases
        count = sum(
            int(np.prod(shape))
            for name, shape in shapes.items()
            if "running" not in name and not any(re.fullmatch(row, name) for row in aliases)
        )
        assert count + 1000 * (config.channels[-1] + 1) == total


def test_aliases_say_what_they_are():
    reasons = {row.reason for row in mpvit.rules(TINY) if isinstance(row, Skip)}
    assert "alias of MHCA_layers.1.cpe of the same path" in reasons
    assert "alias of MHCA_layers.0.factoratt_crpe.crpe of the same path" in reasons


def test_any_shape_is_inferred():
    assert mpvit.infer(official_shapes(TINY)) == TINY
    assert mpvit.infer({"stem.0.conv.weight": (32, 3, 3, 3)}) is None
    shapes = official_shapes(TINY)
    del shapes["mhca_stages.1.mhca_blks.0.MHCA_layers.0.mlp.fc1.weight"]
    with pytest.raises(ValueError, match=r"lack 'mhca_stages\.1\.mhca_blks\.0"):
        mpvit.infer(shapes)


@pytest.mark.parametrize(
    ("stem_stride", "sizes", "reductions"),
    [(1, [(19, 25), (10, 13)], (2, 4)), (2, [(10, 13), (5, 7)], (4, 8))],
)
def test_feature_sizes_and_types(stem_stride, sizes, reductions):
    config = dataclasses.replace(TINY, stem_stride=stem_stride)
    encoder = mpvit.Encoder(config, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 37, 50, 3), jnp.float32)
    features, variables = jax.eval_shape(encoder.init_with_output, jax.random.key(0), image)
    assert [array.shape for array in features] == [(2, *size, 24) for size in sizes]
    assert (config.channels, config.reductions) == ((24, 24), reductions)
    assert {array.dtype for array in features} == {jnp.dtype(jnp.bfloat16)}
    assert {array.dtype for array in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_layers_of_a_path_share_their_position_encodings():
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    params = jax.eval_shape(mpvit.Encoder(TINY).init, jax.random.key(0), image)["params"]
    path = params["stage1_path0"]
    assert set(path) == {"position", "relative_position", "layer0", "layer1"}
    assert set(path["layer1"]) == {"norm1", "qkv", "projection", "norm2", "mlp"}
    kernels = [path["relative_position"][f"conv{index}"]["kernel"].shape for index in range(3)]
    assert kernels == [(3, 3, 1, 6), (5, 5, 1, 9), (7, 7, 1, 9)]


def test_training_draws_drop_path_and_records_the_batch(random_variables):
    encoder = mpvit.Encoder(
        mpvit.Config(
            embed_dims=(8,), num_layers=(2,), num_paths=(1,), mlp_ratios=(1.0,), drop_path_rate=0.5
        )
    )
    image = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = random_variables(encoder, image)

    @jax.jit
    def train(key):
        rngs = {"drop_path": key}
        return encoder.apply(variables, image, train=True, rngs=rngs, mutable="batch_stats")

    (one, updates), (other, _) = train(jax.random.key(2)), train(jax.random.key(3))
    assert not np.allclose(one[-1], other[-1])
    before, after = variables["batch_stats"], updates["batch_stats"]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert not np.allclose(old, new)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": (1, 3)}, "one entry"),
        ({"embed_dims": (64, 100, 216, 288)}, "multiples of 8"),
        ({"num_paths": (2, 3, 0, 3)}, "positive"),
        ({"drop_path_rate": -0.1}, "drop_path_rate"),
    ],
)
def test_bad_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mpvit.Config(**options)
