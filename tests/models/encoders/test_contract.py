"""What every registered encoder promises, checked on the shapes of its variants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from diffdepth_jax import config as config_lib
from diffdepth_jax import registry
from diffdepth_jax.models.encoders.encoder import (
    EncoderConfig,
    EncoderFile,
    layers_to_the_end,
)
from diffdepth_jax.models.tables import Layout
from diffdepth_jax.weights.rules import names

every_encoder = pytest.mark.parametrize("name", registry.names("encoder"))


# Encoders that take images of one size only, as set by the variant.
SIZES: dict[str, tuple[int, int]] = {}


def size_of(config):
    coarsest = max(config.reductions)
    return SIZES.get(config.name, (2 * coarsest, 3 * coarsest))


@functools.cache
def shapes_of(file, config):
    """Shapes of an encoder's features and of its variables, without computing any."""
    size = size_of(config)
    encoder = file.Encoder(config, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    return jax.eval_shape(encoder.init_with_output, jax.random.key(0), image)


@every_encoder
def test_the_file_offers_what_the_contract_says(name):
    file = registry.module("encoder", name)
    assert isinstance(file, EncoderFile) and file.__doc__
    assert file.VARIANTS and file.LAYOUTS
    assert all(isinstance(layout, Layout) for layout in file.LAYOUTS.values())
    assert file.infer({"nothing.weight": (1,)}) is None
    assert name in registry.SIGNATURES["encoder"]
    for config in file.VARIANTS.values():
        assert isinstance(config, file.Config) and isinstance(config, EncoderConfig)
        assert config.name == name and dataclasses.is_dataclass(config)
        again = config_lib.from_mapping(file.Config, config_lib.to_mapping(config))
        assert again == config


@every_encoder
def test_features_have_the_promised_channels_and_reductions(name):
    file = registry.module("encoder", name)
    config = next(iter(file.VARIANTS.values()))
    features, variables = shapes_of(file, config)
    assert isinstance(features, tuple)
    assert tuple(array.shape[-1] for array in features) == config.channels
    assert [array.shape[:3] for array in features] == [
        (2, *(side // reduction for side in size_of(config))) for reduction in config.reductions
    ]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@every_encoder
def test_the_table_names_every_variable_and_the_names_determine_the_config(name):
    file = registry.module("encoder", name)
    config = next(iter(file.VARIANTS.values()))
    _, variables = shapes_of(file, config)
    found = names(variables, file.rules(config))
    assert len(found) >= len(jax.tree.leaves(variables))
    assert registry.matching("encoder", found) == (name,)


# For each encoder some parts, starting at the image, and the layers from each to the end.
LAYERS = {
    "resnet": {"stage0_block0": 8, "stage0_block1": 7, "stage3_block1": 1},
    "swin": {"patch_embed": 25, "patch_norm": 25, "stage0_block0": 24, "stage0_block1": 23}
    | {"stage0_merge": 23, "stage2_block17": 3, "stage3_block1": 1, "norm0": 0, "norm3": 0},
    "swin2": {"patch_embed": 13, "stage0_block0": 12, "stage2_merge": 3, "stage3_block1": 1},
    "mpvit": {"stem0": 5, "stage0_patch1": 4, "stage0_local": 4, "stage3_aggregate": 1},
    "torchvision_resnet": {"conv1": 9, "bn1": 9, "layer1_block0": 8, "layer4_block1": 1},
    "dinov2": {"class_token": 13, "positions": 13, "patch_embed": 13, "block0": 12, "block2": 10}
    | {"block10": 2, "block11": 1, "norm": 0},
    "vit": {"class_token": 25, "block0": 24, "block23": 1},
    "beit": {"class_token": 25, "patch_embed": 25, "block0": 24, "block9": 15, "block23": 1},
    "hybrid_vit": {"stem_conv": 29, "positions": 29, "patch_embed": 29, "stage0_block0": 28}
    | {"stage2_block8": 13, "block0": 12, "block11": 1},
    "efficientnet_lite": {"stem_conv": 17, "stage0_block0": 16, "stage6_block0": 1},
}
LAYER_VARIANTS = {"swin": "large", "vit": "large", "beit": "large_384"}


@every_encoder
def test_every_part_has_a_layer(name):
    file = registry.module("encoder", name)
    variants = file.VARIANTS
    config = variants.get(LAYER_VARIANTS.get(name)) or next(iter(variants.values()))
    _, variables = shapes_of(file, config)
    layers = layers_to_the_end(variables["params"])
    assert layers.keys() == variables["params"].keys()
    assert {part: layers[part] for part in LAYERS[name]} == LAYERS[name]
    first = max(layers.values())
    assert set(range(1, first + 1)) - {first} <= set(layers.values())
