import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.config import from_mapping, to_mapping
from diffdepth_jax.errors import WeightsError
from diffdepth_jax.models.encoders import swin
from diffdepth_jax.weights.rules import convert, export, names

TINY = swin.Config(embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=4, mlp_ratio=2.0)


def official_shapes(config: swin.Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the release's encoder (mmcv layout)."""
    shapes, patch, area = {}, config.patch_size, config.window_size**2

    def add(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    add("patch_embed.projection", config.embed_dim, 3, patch, patch)
    add("patch_embed.norm", config.embed_dim)
    for stage, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        width = config.embed_dim * 2**stage
        hidden = int(width * config.mlp_ratio)
        for block in range(depth):
            here = f"stages.{stage}.blocks.{block}"
            bias_table = ((2 * config.window_size - 1) ** 2, heads)
            shapes[f"{here}.attn.w_msa.relative_position_bias_table"] = bias_table
            shapes[f"{here}.attn.w_msa.relative_position_index"] = (area, area)
            add(f"{here}.norm1", width)
            add(f"{here}.attn.w_msa.qkv", 3 * width, width)
            add(f"{here}.attn.w_msa.proj", width, width)
            add(f"{here}.norm2", width)
            add(f"{here}.ffn.layers.0.0", hidden, width)
            add(f"{here}.ffn.layers.1", width, hidden)
        if stage < len(config.depths) - 1:
            add(f"stages.{stage}.downsample.norm", 4 * width)
            add(f"stages.{stage}.downsample.reduction", 2 * width, 4 * width, bias=False)
        add(f"norm{stage}", width)
    return shapes


def test_recorded_features(encoder_case):
    case = encoder_case("swin_hahi")
    config = swin.infer(case.shapes)
    assert config == dataclasses.replace(swin.VARIANTS["large"], depths=(2, 2, 2, 2))
    assert official_shapes(config) == case.shapes
    case.check(swin, config)


@pytest.mark.parametrize("variant", [name for name in swin.VARIANTS if name != "large_384"])
def test_every_variant_is_inferred_and_filled(variant, round_trip):
    config = swin.VARIANTS[variant]
    assert swin.infer(official_shapes(config)) == config
    small = dataclasses.replace(config, embed_dim=config.num_heads[0] * 2)
    written = round_trip(swin, small, official_shapes(small))
    index = written["stages.1.blocks.0.attn.w_msa.relative_position_index"]
    np.testing.assert_array_equal(index, swin.relative_position_index(config.window_size))
    assert from_mapping(swin.Config, json.loads(json.dumps(to_mapping(config)))) == config


def test_windows_are_clipped_to_the_maps_of_a_given_image_size():
    config = swin.Config(window_size=12, image_size=288)
    assert [config.windows(stage) for stage in range(4)] == [(12, 6), (12, 6), (12, 6), (9, 0)]
    assert [config.shift(2, block) for block in range(3)] == [0, 6, 0]
    fitting = dataclasses.replace(config, image_size=384)
    assert [fitting.windows(stage) for stage in (2, 3)] == [(12, 6), (12, 0)]
    assert dataclasses.replace(config, image_size=None).windows(3) == (12, 6)


def test_a_stage_of_one_window_attends_to_the_whole_map(random_variables):
    """Equals an unshifted window of the map's size."""
    config = dataclasses.replace(TINY, depths=(2,), num_heads=(2,), window_size=7, image_size=20)
    image = jax.random.normal(jax.random.key(1), (2, 20, 20, 3))
    encoder = swin.Encoder(config)
    variables = random_variables(encoder, image)
    shape = variables["params"]["stage0_block1"]["attention"]["relative_position_bias"].shape
    assert shape == (81, 2)
    tokens = swin.Encoder(dataclasses.replace(config, depths=(1,))).apply(variables, image)[0]
    block = swin.Block(2, 5, 0, 16, 0.0, jnp.float32)
    without = dataclasses.replace(config, output_norms=False, depths=(1,))
    (raw,) = swin.Encoder(without).apply(variables, image)
    (norm,) = (variables["params"]["norm0"],)
    np.testing.assert_allclose(
        tokens, swin.LayerNorm().apply({"params": norm}, raw), rtol=1e-5, atol=1e-5
    )
    whole = block.apply({"params": variables["params"]["stage0_block1"]}, raw, False)
    (expected,) = swin.Encoder(dataclasses.replace(config, output_norms=False)).apply(
        variables, image
    )
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)


def test_microsofts_names_are_written_complete_for_strict_loading():
    layout = swin.LAYOUTS["microsoft"]
    config = dataclasses.replace(
        TINY, depths=(2, 2, 1), num_heads=(2, 4, 4), image_size=64, output_norms=False
    )
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(swin.Encoder(config).init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    table = layout.rules(config)
    written = export(variables, table, names(variables, table))
    masks = {name: array for name, array in written.items() if name.endswith("attn_mask")}
    assert {name: array.shape for name, array in masks.items()} == {
        "layers.0.blocks.1.attn_mask": (16, 16, 16),
        "layers.1.blocks.1.attn_mask": (4, 16, 16),
    }
    assert all(set(np.unique(array)) == {0.0, -100.0} for array in masks.values())
    index = written["layers.2.blocks.0.attn.relative_position_index"]
    np.testing.assert_array_equal(index, swin.relative_position_index(4))
    assert written["norm.weight"].shape == (32,) and written["head.weight"].shape == (1000, 32)
    assert layout.infer({name: array.shape for name, array in written.items()}) == config
    for left in (written, {n: a for n, a in written.items() if n not in masks}):
        again = convert(left, table, shapes)
        jax.tree.map(np.testing.assert_array_equal, again, variables)
    # Without masks: the coarsest map is one window.
    left = {name: array.shape for name, array in written.items() if name not in masks}
    assert layout.infer(left) == config
    sizeless = dataclasses.replace(config, image_size=None)
    with pytest.raises(WeightsError, match="image_size is None"):
        export(variables, layout.rules(sizeless), written)


def test_any_shape_is_inferred():
    assert swin.infer(official_shapes(TINY)) == TINY
    odd = dataclasses.replace(TINY, patch_size=2, mlp_ratio=1.5, num_heads=(4, 8))
    assert swin.infer(official_shapes(odd)) == odd
    assert swin.infer({"layers.0.blocks.0.attn.qkv.weight": (288, 96)}) is None
    shapes = official_shapes(TINY)
    del shapes["patch_embed.projection.weight"]
    with pytest.raises(ValueError, match=r"lack 'patch_embed\.projection\.weight'"):
        swin.infer(shapes)


def test_feature_sizes_and_types():
    encoder = swin.Encoder(dataclasses.replace(TINY, depths=(1, 1)), dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 37, 50, 3), jnp.float32)
    features, variables = jax.eval_shape(encoder.init_with_output, jax.random.key(0), image)
    assert [array.shape for array in features] == [(2, 10, 13, 8), (2, 5, 7, 16)]
    assert (TINY.channels, TINY.reductions) == ((8, 16), (4, 8))
    assert {array.dtype for array in features} == {jnp.dtype(jnp.bfloat16)}
    assert {array.dtype for array in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(("size", "shift"), [((8, 12), 2), ((4, 4), 2), ((6, 3), 0), ((5, 9), 1)])
def test_window_attention_is_masked_attention_over_the_padded_map(size, shift):
    """Against attention between all pairs of tokens, written out pair by pair."""
    height, width = size
    window, heads, channels = 4, 2, 6
    module = swin.WindowAttention(heads, window, shift, jnp.float32)
    rng = np.random.default_rng(0)
    params = {
        "relative_position_bias": rng.standard_normal((49, heads)),
        "qkv": {
            "kernel": rng.standard_normal((channels, 3 * channels)),
            "bias": rng.standard_normal(3 * channels),
        },
        "projection": {
            "kernel": rng.standard_normal((channels, channels)),
            "bias": rng.standard_normal(channels),
        },
    }
    tokens = rng.standard_normal((1, height, width, channels))

    rows, columns = (-(-side // window) * window for side in size)
    padded = np.zeros((rows, columns, channels))
    padded[:height, :width] = tokens[0]
    qkv = padded @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    query, key, value = np.split(qkv.reshape(rows, columns, 3, heads, -1), 3, axis=2)
    expected = np.zeros((height, width, heads, channels // heads))

    def place(y, x):
        """A token's window, its position in it, and the side of the border that it came from."""
        y, x = (y - shift) % rows, (x - shift) % columns
        wrapped = (y >= rows - shift, x >= columns - shift)
        return (y // window, x // window), (y % window, x % window), wrapped

    for y, x, head in np.ndindex(height, width, heads):
        scores, values = [], []
        here = place(y, x)
        for other in np.ndindex(rows, columns):
            there = place(*other)
            if there[0] != here[0]:
                continue
            dy, dx = (a - b + window - 1 for a, b in zip(here[1], there[1], strict=True))
            score = query[y, x, 0, head] @ key[*other, 0, head] / np.sqrt(channels // heads)
            score += params["relative_position_bias"][dy * (2 * window - 1) + dx, head]
            scores.append(score - 100 * (there[2] != here[2]))
            values.append(value[*other, 0, head])
        weights = np.exp(scores - np.max(scores))
        expected[y, x, head] = weights / weights.sum() @ np.array(values)
    expected = expected.reshape(height, width, channels) @ params["projection"]["kernel"]
    expected += params["projection"]["bias"]

    params = jax.tree.map(jnp.asarray, params)
    found = module.apply({"params": params}, jnp.asarray(tokens))
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_merging_reads_the_unfold_layout():
    """The transform against OpenMMLab's unfold, where channel c of neighbour k is c * 4 + k."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((1, 3, 4, 2))
    weight, scale, bias = (rng.standard_normal(shape) for shape in ((4, 8), (8,), (8,)))
    padded = np.pad(tokens, ((0, 0), (0, 1), (0, 0), (0, 0)))
    expected = np.zeros((2, 2, 4))
    for y, x in np.ndindex(2, 2):
        neighbours = padded[0, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(4, 2)
        unfolded = neighbours.T.reshape(-1)
        unfolded = (unfolded - unfolded.mean()) / np.sqrt(unfolded.var() + 1e-5)
        expected[y, x] = weight @ (unfolded * scale + bias)
    params = {
        "norm": {
            "scale": jnp.asarray(swin.MERGE_NORM.forward(scale)),
            "bias": jnp.asarray(swin.MERGE_NORM.forward(bias)),
        },
        "reduction": {"kernel": jnp.asarray(swin.MERGE_REDUCTION.forward(weight))},
    }
    found = swin.PatchMerging(jnp.float32).apply({"params": params}, jnp.asarray(tokens))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_drop_path_is_drawn_only_in_training(random_variables):
    config = dataclasses.replace(TINY, depths=(2,), num_heads=(2,), drop_path_rate=0.5)
    encoder = swin.Encoder(config)
    image = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = random_variables(encoder, image)

    @jax.jit
    def train(key):
        return encoder.apply(variables, image, train=True, rngs={"drop_path": key})[-1]

    assert not np.allclose(train(jax.random.key(2)), train(jax.random.key(3)))
    np.testing.assert_array_equal(train(jax.random.key(2)), train(jax.random.key(2)))
    never = swin.Encoder(dataclasses.replace(config, drop_path_rate=0.0))
    inference = [str(jax.make_jaxpr(each.apply)(variables, image)) for each in (encoder, never)]
    assert inference[0] == inference[1]


def test_recomputing_more_stores_less(random_variables):
    image = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    sizes = []
    for remat in ("none", "convolutions", "full"):
        encoder = swin.Encoder(dataclasses.replace(TINY, remat=remat))
        variables = random_variables(encoder, image)

        def stored(variables, encoder=encoder):
            _, pull_back = jax.vjp(lambda *inputs: encoder.apply(*inputs)[-1], variables, image)
            return jax.tree.leaves(pull_back)

        sizes.append(sum(leaf.size for leaf in jax.eval_shape(stored, variables)))
    assert sizes[0] > 1.2 * sizes[1] and sizes[1] > 1.2 * sizes[2], sizes


def test_recomputing_does_not_change_gradients(random_variables):
    """With dropped paths: recomputing must give what was computed first."""
    config = dataclasses.replace(TINY, depths=(1,), num_heads=(2,), drop_path_rate=0.5)
    image = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = random_variables(swin.Encoder(config), image)
    rngs = {"drop_path": jax.random.key(2)}

    def gradient(remat):
        encoder = swin.Encoder(dataclasses.replace(config, remat=remat))

        def loss(variables):
            return jnp.sin(encoder.apply(variables, image, train=True, rngs=rngs)[-1]).mean()

        return jax.jit(jax.grad(loss))(variables)

    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(
            got, want, rtol=1e-3, atol=1e-5 * float(abs(want).max())
        ),
        gradient("full"),
        gradient("none"),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (2, 2)}, "one entry"),
        ({"embed_dim": 100}, "cannot be divided into"),
        ({"embed_dim": 0}, "positive"),
        ({"window_size": 1}, "window_size is 1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"image_size": 100}, "image_size is 100.*stride, 32"),
    ],
)
def test_bad_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        swin.Config(**options)
