"""The vision transformer and its hybrid: arithmetic, tables, configs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.config import from_mapping, to_mapping
from diffdepth_jax.models.encoders import hybrid_vit, vit
from diffdepth_jax.weights import rules

TINY = vit.Config(
    embed_dim=16, depth=4, num_heads=2, hidden_features=24, patch_size=4, grid=3, taps=(0, 1, 2, 3)
)
TINY_HYBRID = hybrid_vit.Config(
    stem_features=4,
    depths=(2, 1, 1),
    widths=(8, 16, 32),
    num_groups=2,
    embed_dim=64,
    depth=4,
    num_heads=1,
    hidden_features=24,
    grid=2,
    taps=(2, 3),
)
FAMILIES = pytest.mark.parametrize(
    ("module", "config"), [(vit, TINY), (hybrid_vit, TINY_HYBRID)], ids=["vit", "hybrid"]
)


def shapes_of(module, config, table):
    side = 2 * max(config.reductions)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    expected = jax.eval_shape(module.Encoder(config).init, jax.random.key(0), image)
    return rules.shapes(expected, table)


@FAMILIES
def test_weights_survive_a_round_trip(module, config, round_trip):
    round_trip(module, config, shapes_of(module, config, module.rules(config)))


@pytest.mark.parametrize("module", [vit, hybrid_vit], ids=["vit", "hybrid"])
@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_every_variant_is_inferred_from_its_names(module, layout):
    layout = module.LAYOUTS[layout]
    for config in module.VARIANTS.values():
        found = layout.infer(shapes_of(module, config, layout.rules(config)))
        undetermined = {field: getattr(config, field) for field in layout.undetermined}
        assert dataclasses.replace(found, **undetermined) == config
        assert (found.taps, found.num_heads) == (config.taps, config.num_heads)
        again = from_mapping(module.Config, json.loads(json.dumps(to_mapping(config))))
        assert again == config
    assert layout.infer({"nothing.weight": (1,)}) is None


@pytest.mark.parametrize(
    ("variant", "count"), [("base_384", 86_859_496), ("large_384", 304_715_752)]
)
def test_published_parameter_counts(variant, count):
    """timm's counts, classifiers included."""
    config = vit.VARIANTS[variant]
    shapes = shapes_of(vit, config, vit.rules(config))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count


def test_feature_sizes_and_types():
    encoder = hybrid_vit.Encoder(TINY_HYBRID, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 37, 50, 3), jnp.float32)
    features, variables = jax.eval_shape(encoder.init_with_output, jax.random.key(0), image)
    assert [array.shape for array in features] == [
        (2, 12, 16, 8),
        (2, 6, 8, 16),
        (2, 3, 4, 64),
        (2, 3, 4, 64),
    ]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_class_tokens_belong_to_the_tapped_blocks():
    def run(image):
        encoder = hybrid_vit.Encoder(TINY_HYBRID)
        results, _ = encoder.init_with_output(jax.random.key(0), image, method="with_class_tokens")
        return results

    features, tokens = jax.eval_shape(run, jax.ShapeDtypeStruct((1, 32, 48, 3), jnp.float32))
    assert [token is not None for token in tokens] == list(TINY_HYBRID.class_levels)
    assert [array.shape[-1] for array in features] == list(TINY_HYBRID.channels)
    assert tokens[2].shape == tokens[3].shape == (1, 64)


def test_positions_for_another_grid_are_interpolated_between_pixel_centres(random_variables):
    """Tokens before the first block, of zero patches: just the positions."""
    config = dataclasses.replace(TINY, depth=1, taps=(0,))
    encoder, image = vit.Encoder(config), jnp.zeros((1, 8, 20, 3))
    variables = random_variables(encoder, image)
    params = variables["params"]
    params["patch_embed"] = jax.tree.map(jnp.zeros_like, params["patch_embed"])
    for branch in (params["block0"]["attention"]["projection"], params["block0"]["mlp"]["fc2"]):
        branch.update(jax.tree.map(jnp.zeros_like, branch))
    (features,), (token,) = encoder.apply(variables, image, method="with_class_tokens")
    table = np.asarray(params["positions"], np.float64)
    grid = table[1:].reshape(3, 3, 16)
    for y, x in np.ndindex(2, 5):
        wanted = np.zeros(16)
        for row, column in np.ndindex(3, 3):
            at = (np.clip((y + 0.5) * 3 / 2 - 0.5, 0, 2), np.clip((x + 0.5) * 3 / 5 - 0.5, 0, 2))
            weight = max(0, 1 - abs(at[0] - row)) * max(0, 1 - abs(at[1] - column))
            wanted += weight * grid[row, column]
        np.testing.assert_allclose(features[0, y, x], wanted, atol=1e-6)
    np.testing.assert_allclose(token[0], table[0] + np.asarray(params["class_token"]), atol=1e-6)


@pytest.mark.parametrize(
    ("size", "stride", "kernel"), [(7, 2, 7), (8, 2, 7), (5, 1, 3), (6, 2, 3), (7, 2, 1)]
)
def test_standardised_convolution_matches_its_definition(size, stride, kernel):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((1, size, size + 1, 2)).astype(np.float32)
    weights = rng.standard_normal((kernel, kernel, 2, 3)).astype(np.float32)
    conv = hybrid_vit.StandardisedConv(3, kernel, stride, jnp.float32)
    found = conv.apply({"params": {"kernel": jnp.asarray(weights)}}, jnp.asarray(inputs))
    exact = weights.astype(np.float64)
    exact -= exact.mean((0, 1, 2))
    exact /= np.sqrt((exact**2).mean((0, 1, 2)) + 1e-8)
    sides = [-(-side // stride) for side in inputs.shape[1:3]]
    amounts = [
        max((count - 1) * stride + kernel - side, 0)
        for count, side in zip(sides, inputs.shape[1:3], strict=True)
    ]
    pads = [(amount // 2, amount - amount // 2) for amount in amounts]
    padded = np.pad(inputs.astype(np.float64), ((0, 0), *pads, (0, 0)))
    assert found.shape == (1, *sides, 3)
    for y, x in np.ndindex(*sides):
        window = padded[0, y * stride :, x * stride :][:kernel, :kernel]
        wanted = np.einsum("yxi,yxio->o", window, exact)
        np.testing.assert_allclose(found[0, y, x], wanted, rtol=1e-4, atol=1e-4)


def test_recomputing_does_not_change_gradients(random_variables):
    config = dataclasses.replace(TINY, depth=2, taps=(0, 1), drop_path_rate=0.3)
    image = jax.random.normal(jax.random.key(0), (2, 8, 20, 3))
    variables = random_variables(vit.Encoder(config), image)

    def gradient(remat):
        encoder = vit.Encoder(dataclasses.replace(config, remat=remat))

        def loss(variables):
            keys = {"drop_path": jax.random.key(1)}
            features = encoder.apply(variables, image, train=True, rngs=keys)
            return sum(jnp.square(array).mean() for array in features)

        return jax.jit(jax.grad(loss))(variables)

    wanted, found = gradient("none"), gradient("full")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * (1e-6 + abs(other).max()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, "num_heads 3"),
        ({"taps": (0, 1, 2)}, "the last block, 3"),
        ({"taps": (1, 0, 2, 3)}, "must be increasing"),
        ({"hidden_features": 0}, "hidden_features 0"),
        ({"grid": 0}, "grid 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
    ],
)
def test_impossible_configs(fields, message):
    for config in (TINY, TINY_HYBRID):
        if config is TINY_HYBRID and fields.get("taps") == (1, 0, 2, 3):
            fields = {"taps": (1, 0, 3)}
        if config is TINY_HYBRID and "num_heads" in fields:
            continue
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **fields)


def test_impossible_hybrid_configs():
    with pytest.raises(ValueError, match="num_groups 3"):
        dataclasses.replace(TINY_HYBRID, num_groups=3)
    with pytest.raises(ValueError, match="one positive entry"):
        dataclasses.replace(TINY_HYBRID, depths=(1, 2))
