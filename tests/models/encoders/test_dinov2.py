"""DINOv2: positions, padding, feed-forward parts, recomputation, inference from names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.models.encoders import dinov2
from diffdepth_jax.models.encoders.dinov2 import Config, Encoder
from diffdepth_jax.models.layers import SwiGLU
from diffdepth_jax.ops.image import resize_bicubic
from diffdepth_jax.training import pretrained
from diffdepth_jax.weights import files, rules

TINY = Config(embed_dim=64, depth=2, num_heads=1, taps=(0, 1), hidden_features=32, grid=3)
MODEL = dataclasses.replace(TINY, depth=4, taps=(0, 1, 2, 3))


def variables_of(config):
    shapes = jax.eval_shape(Encoder(config).init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), shapes
    )


def image_of(size):
    image = np.random.default_rng(1).standard_normal((2, *size, 3))
    return jnp.asarray(image, jnp.float32)


def test_positions_are_unchanged_only_on_the_pretraining_grid():
    table = jnp.asarray(np.random.default_rng(0).standard_normal((10, 4)), jnp.float32)
    np.testing.assert_array_equal(dinov2._fitted(table, (3, 3), TINY), table)
    # On any other grid the offset moves them along both axes, even an axis of the same length.
    for size in ((3, 5), (5, 3)):
        scales = tuple((length + 0.1) / 3 for length in size)
        grid = resize_bicubic(table[1:].reshape(1, 3, 3, 4), size, scales=scales)
        fitted = dinov2._fitted(table, size, TINY)
        np.testing.assert_array_equal(fitted[0], table[0])
        np.testing.assert_array_equal(fitted[1:].reshape(grid.shape), grid)
        plain = dinov2._fitted(table, size, dataclasses.replace(TINY, position_offset=0.0))
        moved = jnp.abs(fitted - plain)[1:].reshape(*size, 4).max((1 if size[0] == 3 else 0, 2))
        assert moved.shape == (3,) and moved.min() > 1e-3


def test_an_image_that_does_not_divide_into_patches_is_edge_padded():
    variables, image = variables_of(TINY), image_of((30, 45))
    features = jax.jit(Encoder(TINY).apply)(variables, image)
    assert [array.shape for array in features] == [(2, 3, 4, 64)] * 2
    padded = jnp.pad(image, ((0, 0), (0, 12), (0, 11), (0, 0)), mode="edge")
    for one, other in zip(features, jax.jit(Encoder(TINY).apply)(variables, padded), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_gated_feed_forward_network():
    tokens = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 8)), jnp.float32)
    module = SwiGLU(6)
    params = module.init(jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.3, params)
    fc1, fc2 = params["fc1"], params["fc2"]
    both = tokens @ fc1["kernel"] + fc1["bias"][None, None]
    gate, hidden = both[..., :6], both[..., 6:]
    wanted = (gate / (1 + jnp.exp(-gate)) * hidden) @ fc2["kernel"] + fc2["bias"][None, None]
    got = module.apply({"params": params}, tokens)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_recomputing_blocks_does_not_change_gradients():
    variables, image, grads = variables_of(TINY), image_of((28, 42)), []
    for remat in ("none", "full"):
        encoder = Encoder(dataclasses.replace(TINY, remat=remat, drop_path_rate=0.3))

        def scalar(variables, encoder=encoder):
            rngs = {"drop_path": jax.random.key(1)}
            features = encoder.apply(variables, image, train=True, rngs=rngs)
            return sum(jnp.sin(array).sum() for array in features)

        grads.append(jax.jit(jax.grad(scalar))(variables))
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4), *grads
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("layout", dinov2.LAYOUTS)
@pytest.mark.parametrize("root", ["", "pretrained.", "core.core.pretrained."])
def test_files_of_either_layout_fill_the_encoder(layout, gated, root, tmp_path):
    """Also below a network's root, as in Depth Anything's relative and metric files."""
    config = dataclasses.replace(MODEL, gated=gated)
    variables, table = variables_of(config), dinov2.LAYOUTS[layout].rules(config)
    state_dict = rules.export(variables, table, rules.names(variables, table))
    state_dict = {root + name: array for name, array in state_dict.items()}
    if root:
        state_dict["depth_head.projects.0.weight"] = np.ones((2, 2), np.float32)
    files.write_safetensors(tmp_path / "weights.safetensors", state_dict, {})
    found = pretrained.load_encoder(tmp_path / "weights.safetensors", config)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, dict(variables)))


@pytest.mark.parametrize("name", dinov2.VARIANTS)
def test_every_variant_is_inferred_from_its_weights(name):
    config = dinov2.VARIANTS[name]
    image = jnp.zeros((1, 28, 28, 3))
    expected = jax.eval_shape(Encoder(config).init, jax.random.key(0), image)
    for layout in dinov2.LAYOUTS.values():
        found = layout.infer(rules.shapes(expected, layout.rules(config)))
        undetermined = {field: getattr(config, field) for field in layout.undetermined}
        assert dataclasses.replace(found, **undetermined) == config


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"taps": (0,)}, r"taps are \(0,\).*the last block, 1"),
        ({"taps": (1, 0)}, "must be increasing"),
        ({"taps": ()}, "must be increasing"),
        ({"num_heads": 3}, "embed_dim must be a multiple of num_heads"),
        ({"grid": 0}, "grid is 0"),
        ({"position_offset": 1.0}, "position_offset is 1.0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
    ],
)
def test_an_impossible_config_is_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(TINY, **fields)
