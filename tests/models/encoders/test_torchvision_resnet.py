import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.config import from_mapping, to_mapping
from diffdepth_jax.models.encoders import resnet, torchvision_resnet

TINY = torchvision_resnet.Config(block="bottleneck", depths=(2, 1), widths=(4, 6))


def torchvision_shapes(config: torchvision_resnet.Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's ResNet without its classifier."""
    shapes, inputs = {}, config.widths[0]

    def add(conv, norm, features, fan_in, size):
        shapes[f"{conv}.weight"] = (features, fan_in, size, size)
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{entry}"] = (features,)
        shapes[f"{norm}.num_batches_tracked"] = ()

    add("conv1", "bn1", inputs, 3, 7)
    for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        outputs = width * (4 if config.block == "bottleneck" else 1)
        for block in range(depth):
            here = f"layer{stage + 1}.{block}"
            sizes, inner = (3, 3), width
            if config.block == "bottleneck":
                sizes = (1, 3, 1)
                inner = int(width * (config.width_per_group / 64.0)) * config.groups
            features = (*[inner] * (len(sizes) - 1), outputs)
            fan_in = inputs
            for index, (size, after) in enumerate(zip(sizes, features, strict=True), 1):
                groups = config.groups if size == 3 else 1
                add(f"{here}.conv{index}", f"{here}.bn{index}", after, fan_in // groups, size)
                fan_in = after
            if block == 0 and (stage > 0 or inputs != outputs):
                add(f"{here}.downsample.0", f"{here}.downsample.1", outputs, inputs, 1)
            inputs = outputs
    return shapes


def test_published_parameter_counts():
    """Against torchvision's documented counts, which include a classifier of 1000 classes."""
    published = {"18": 11689512, "34": 21797672, "50": 25557032, "101": 44549160, "152": 60192808}
    published |= {"resnext50_32x4d": 25028904, "resnext101_32x8d": 88791336}
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for variant in ("18", "50", "resnext50_32x4d"):
        config = torchvision_resnet.VARIANTS[variant]
        encoder = torchvision_resnet.Encoder(config)
        params = jax.eval_shape(encoder.init, jax.random.key(0), image)["params"]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert count + 1000 * (config.channels[-1] + 1) == published[variant]
    for variant, total in published.items():
        config = torchvision_resnet.VARIANTS[variant]
        shapes = torchvision_shapes(config).items()
        count = sum(int(np.prod(s)) for name, s in shapes if s and "running" not in name)
        assert count + 1000 * (config.channels[-1] + 1) == total


@pytest.mark.parametrize("variant", torchvision_resnet.VARIANTS)
def test_every_variant_is_inferred(variant):
    config = torchvision_resnet.VARIANTS[variant]
    assert torchvision_resnet.infer(torchvision_shapes(config)) == config
    assert from_mapping(torchvision_resnet.Config, json.loads(json.dumps(to_mapping(config))))


@pytest.mark.parametrize(
    "fields",
    [
        {"block": "basic"},
        {},
        {"groups": 2, "width_per_group": 32},
        {"groups": 3, "width_per_group": 16, "widths": (12, 8)},
        {"width_per_group": 128},  # "wide"
    ],
)
def test_weights_survive_a_round_trip(fields, round_trip):
    config = dataclasses.replace(TINY, **fields)
    shapes = torchvision_shapes(config)
    assert torchvision_resnet.infer(shapes) == config
    round_trip(torchvision_resnet, config, shapes)


def test_feature_sizes_and_types():
    encoder = torchvision_resnet.Encoder(TINY, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 37, 50, 3), jnp.float32)
    features, variables = jax.eval_shape(encoder.init_with_output, jax.random.key(0), image)
    assert [array.shape for array in features] == [(2, 10, 13, 16), (2, 5, 7, 24)]
    assert (TINY.channels, TINY.reductions) == ((16, 24), (4, 8))
    assert {array.dtype for array in features} == {jnp.dtype(jnp.bfloat16)}
    assert {array.dtype for array in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_the_stem_is_the_first_feature_map_on_request():
    config = dataclasses.replace(TINY, stem_features=True)
    image = jax.random.normal(jax.random.key(0), (1, 37, 50, 3))
    variables = torchvision_resnet.Encoder(config).init(jax.random.key(1), image)
    stem, *rest = torchvision_resnet.Encoder(config).apply(variables, image)
    assert (stem.shape, config.channels, config.reductions) == (
        (1, 19, 25, 4),
        (4, 16, 24),
        (2, 4, 8),
    )
    assert float(stem.min()) == 0 < float(stem.max())
    for with_stem, without in zip(
        rest, torchvision_resnet.Encoder(TINY).apply(variables, image), strict=True
    ):
        np.testing.assert_array_equal(with_stem, without)


@pytest.mark.parametrize(
    "fields", [{"block": "basic", "groups": 2}, {"groups": 0}, {"width_per_group": 8}]
)
def test_impossible_groups_are_refused(fields):
    with pytest.raises(ValueError, match="groups"):
        dataclasses.replace(TINY, **fields)


def test_training_uses_and_records_the_batch(random_variables):
    config = torchvision_resnet.Config(depths=(1,), widths=(4,))
    encoder = torchvision_resnet.Encoder(config)
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    variables = random_variables(encoder, image)
    trained, updates = encoder.apply(variables, image, train=True, mutable="batch_stats")
    assert not np.allclose(trained[0], encoder.apply(variables, image)[0])
    before, after = variables["batch_stats"], updates["batch_stats"]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert not np.allclose(old, new)


def test_other_weights_are_not_recognised():
    assert torchvision_resnet.infer({"layers.0.0.conv1.weight": (64, 3, 3, 3)}) is None
    assert resnet.infer(torchvision_shapes(TINY)) is None
    with pytest.raises(ValueError, match="depths"):
        torchvision_resnet.Config(depths=(2, 2))
