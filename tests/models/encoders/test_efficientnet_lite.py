import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.models.encoders import efficientnet_lite
from diffdepth_jax.weights.rules import export, names

TINY = efficientnet_lite.Config(
    stem=4, depths=(1, 2, 1, 1, 2, 1, 1), widths=(4, 8, 4, 8, 12, 8, 16)
)


@functools.cache
def shapes_of(config, size=(64, 64)):
    """Features and variables, without computing any."""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    encoder = efficientnet_lite.Encoder(config)
    return jax.eval_shape(encoder.init_with_output, jax.random.key(0), image)


def published_shapes(config):
    """Names and PyTorch shapes, from the inverted table."""
    _, variables = shapes_of(config)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    table = efficientnet_lite.rules(config)
    return {name: array.shape for name, array in export(zeros, table, names(zeros, table)).items()}


@pytest.mark.parametrize(
    ("variant", "millions"),
    [("lite0", 4.65), ("lite1", 5.42), ("lite2", 6.09), ("lite3", 8.20), ("lite4", 13.01)],
)
def test_published_parameter_counts(variant, millions):
    """Against timm's documented counts, which include a classifier of 1000 classes."""
    config = efficientnet_lite.VARIANTS[variant]
    _, variables = shapes_of(config)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    count += config.widths[-1] * 1280 + 2 * 1280 + 1281 * 1000
    assert round(count / 1e6, 2) == millions


def test_names_determine_the_config():
    for config in (TINY, efficientnet_lite.VARIANTS["lite3"]):
        assert efficientnet_lite.infer(published_shapes(config)) == config


def test_weights_survive_a_round_trip(round_trip):
    round_trip(efficientnet_lite, TINY, published_shapes(TINY))


def test_sizes_are_rounded_up():
    features, _ = shapes_of(TINY, (37, 50))
    assert [array.shape for array in features] == [
        (1, 10, 13, 8),
        (1, 5, 7, 4),
        (1, 3, 4, 12),
        (1, 2, 2, 16),
    ]


def test_wrong_numbers_of_stages_are_refused():
    with pytest.raises(ValueError, match="7 stages"):
        efficientnet_lite.Config(depths=(1, 2))
    with pytest.raises(ValueError, match="positive"):
        efficientnet_lite.Config(stem=0)
