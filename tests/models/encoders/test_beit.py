"""BEiT: position biases, tables, configs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.config import from_mapping, to_mapping
from diffdepth_jax.models.encoders import beit, vit
from diffdepth_jax.weights import rules

TINY = beit.Config(
    embed_dim=16, depth=4, num_heads=2, hidden_features=24, patch_size=4, grid=3, taps=(0, 1, 2, 3)
)


def shapes_of(config, table):
    side = 2 * config.patch_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    expected = jax.eval_shape(beit.Encoder(config).init, jax.random.key(0), image)
    return rules.shapes(expected, table)


@pytest.mark.parametrize("size", [(3, 3), (2, 3), (5, 2), (1, 1)])
def test_position_biases_match_their_definition(size):
    """Each offset of the new grid is interpolated between those of the table's grid."""
    (height, width), side = size, 5
    table = np.random.default_rng(0).standard_normal((side**2 + 3, 2)).astype(np.float32)
    found = np.asarray(beit.position_bias(jnp.asarray(table), size))
    count = 1 + height * width
    assert found.shape == (2, count, count)

    def at(index, length):
        place = np.clip((index + 0.5) * side / length - 0.5, 0, side - 1)
        return np.maximum(0, 1 - abs(place - np.arange(side)))

    square = table[:-3].reshape(side, side, 2).astype(np.float64)
    tokens = [(y, x) for y in range(height) for x in range(width)]
    for query, (y, x) in enumerate(tokens, 1):
        for key, (v, u) in enumerate(tokens, 1):
            rows = at(y - v + height - 1, 2 * height - 1)
            columns = at(x - u + width - 1, 2 * width - 1)
            wanted = np.einsum("a,b,abh->h", rows, columns, square)
            np.testing.assert_allclose(found[:, query, key], wanted, atol=1e-5)
    assert (found[:, 0, 1:] == table[-3][:, None]).all()
    assert (found[:, 1:, 0] == table[-2][:, None]).all()
    assert (found[:, 0, 0] == table[-1]).all()


def test_weights_survive_a_round_trip(round_trip):
    table = beit.rules(TINY)
    written = round_trip(beit, TINY, shapes_of(TINY, table))
    index = written["blocks.1.attn.relative_position_index"]
    assert index.dtype == np.int64 and index.shape == (10, 10)
    # The table's row for offset (query - key) + 2 in a square of side 5, and the last three rows.
    assert index[1, 1] == 12 and index[1, 9] == 0 and index[9, 1] == 24 and index[2, 1] == 13
    assert index[0, 1] == 25 and index[1, 0] == 26 and index[0, 0] == 27
    biases = np.random.default_rng(0).standard_normal((28, 2)).astype(np.float32)
    found = beit.position_bias(jnp.asarray(biases), (3, 3))
    np.testing.assert_array_equal(np.moveaxis(biases[index], 2, 0), found)


@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_every_variant_is_inferred_from_its_names(layout):
    layout = beit.LAYOUTS[layout]
    for config in beit.VARIANTS.values():
        shapes = shapes_of(config, layout.rules(config))
        found = layout.infer(shapes)
        undetermined = {field: getattr(config, field) for field in layout.undetermined}
        assert dataclasses.replace(found, **undetermined) == config and found.taps == config.taps
        assert from_mapping(beit.Config, json.loads(json.dumps(to_mapping(config)))) == config
    assert layout.infer({"nothing.weight": (1,)}) is None
    assert vit.infer(shapes_of(TINY, beit.rules(TINY))) is None


def test_the_index_may_be_missing_or_have_another_type():
    """timm has left it out of its files since 0.9."""
    rng = np.random.default_rng(0)
    shapes = shapes_of(TINY, beit.rules(TINY))
    state_dict = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    without = {name: array for name, array in state_dict.items() if "_index" not in name}
    assert len(without) == len(state_dict) - 4
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    expected = jax.eval_shape(beit.Encoder(TINY).init, jax.random.key(0), image)
    one, other = (rules.convert(each, beit.rules(TINY), expected) for each in (state_dict, without))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_recomputing_does_not_change_gradients(random_variables):
    config = dataclasses.replace(TINY, depth=2, taps=(0, 1), drop_path_rate=0.3)
    image = jax.random.normal(jax.random.key(0), (2, 8, 20, 3))
    variables = random_variables(beit.Encoder(config), image)

    def gradient(remat):
        encoder = beit.Encoder(dataclasses.replace(config, remat=remat))

        def loss(variables):
            keys = {"drop_path": jax.random.key(1)}
            features = encoder.apply(variables, image, train=True, rngs=keys)
            return sum(jnp.square(array).mean() for array in features)

        return jax.jit(jax.grad(loss))(variables)

    wanted, found = gradient("none"), gradient("full")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * (1e-6 + abs(other).max()))
    biases = wanted["params"]["block0"]["position_bias"]
    assert abs(biases).max() > 0
