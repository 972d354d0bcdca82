import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.config import from_mapping, to_mapping
from diffdepth_jax.models.encoders import resnet


def official_shapes(config: resnet.Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the release's encoder."""
    shapes, inputs = {}, 3
    for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        for block in range(depth):
            here = f"layers.{stage}.{block}"
            for layer, fan_in in ((1, inputs), (2, width)):
                shapes[f"{here}.conv{layer}.weight"] = (width, fan_in, 3, 3)
                for entry in ("weight", "bias", "running_mean", "running_var"):
                    shapes[f"{here}.bn{layer}.{entry}"] = (width,)
                shapes[f"{here}.bn{layer}.num_batches_tracked"] = ()
            if block == 0:
                shapes[f"{here}.downsample.weight"] = (width, inputs, 3, 3)
                shapes[f"{here}.downsample.bias"] = (width,)
            inputs = width
    return shapes


def test_recorded_features(encoder_case):
    case = encoder_case("res18")
    config = resnet.infer(case.shapes)
    assert config == resnet.VARIANTS["18"]
    assert official_shapes(config) == case.shapes
    case.check(resnet, config)


@pytest.mark.parametrize("variant", resnet.VARIANTS)
def test_every_variant_is_inferred_and_filled(variant, round_trip):
    config = resnet.VARIANTS[variant]
    assert resnet.infer(official_shapes(config)) == config
    small = dataclasses.replace(config, widths=(4, 8, 6, 10))
    assert resnet.infer(official_shapes(small)) == small
    round_trip(resnet, small, official_shapes(small))
    assert from_mapping(resnet.Config, json.loads(json.dumps(to_mapping(config)))) == config


def test_feature_sizes_and_types():
    config = resnet.Config(depths=(1, 1, 1, 1), widths=(4, 8, 16, 32))
    encoder = resnet.Encoder(config, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 37, 50, 3), jnp.float32)
    features, variables = jax.eval_shape(encoder.init_with_output, jax.random.key(0), image)
    assert [array.shape for array in features] == [
        (2, 19, 25, 4),
        (2, 10, 13, 8),
        (2, 5, 7, 16),
        (2, 3, 4, 32),
    ]
    assert config.channels == (4, 8, 16, 32)
    assert config.reductions == (2, 4, 8, 16)
    assert {array.dtype for array in features} == {jnp.dtype(jnp.bfloat16)}
    assert {array.dtype for array in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_training_uses_and_records_the_batch(random_variables):
    config = resnet.Config(depths=(1,), widths=(4,))
    encoder = resnet.Encoder(config)
    image = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = random_variables(encoder, image)
    trained, updates = encoder.apply(variables, image, train=True, mutable="batch_stats")
    assert not np.allclose(trained[0], encoder.apply(variables, image)[0])
    before, after = variables["batch_stats"], updates["batch_stats"]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert not np.allclose(old, new)


def test_other_weights_are_not_a_resnet():
    assert resnet.infer({"layer1.0.conv1.weight": (64, 64, 3, 3)}) is None
    shapes = official_shapes(resnet.Config())
    del shapes["layers.2.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"lack 'layers\.2\.0\.conv1\.weight'"):
        resnet.infer(shapes)


@pytest.mark.parametrize(
    "options", [{"depths": (2, 2)}, {"depths": (), "widths": ()}, {"widths": (64, 0, 64, 64)}]
)
def test_bad_configs_are_refused(options):
    with pytest.raises(ValueError, match="depths"):
        resnet.Config(**options)
