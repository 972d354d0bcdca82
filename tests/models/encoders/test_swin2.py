import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.config import from_mapping, to_mapping
from diffdepth_jax.errors import WeightsError
from diffdepth_jax.models.encoders import swin2
from diffdepth_jax.weights.rules import convert, export, names

TINY = swin2.Config(
    embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=4, image_size=64, mlp_ratio=2.0
)


def shapes_in_files(config: swin2.Config, classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Microsoft's classifier."""
    shapes, patch = {}, config.patch_size

    def add(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    add("patch_embed.proj", config.embed_dim, 3, patch, patch)
    add("patch_embed.norm", config.embed_dim)
    for stage, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        width, side = config.channels[stage], config.image_size // config.reductions[stage]
        hidden, window = int(width * config.mlp_ratio), min(config.window_size, side)
        for block in range(depth):
            here = f"layers.{stage}.blocks.{block}"
            if block % 2 and side > window:
                count = (-(-side // window)) ** 2
                shapes[f"{here}.attn_mask"] = (count, window**2, window**2)
            shapes[f"{here}.attn.logit_scale"] = (heads, 1, 1)
            shapes[f"{here}.attn.q_bias"] = shapes[f"{here}.attn.v_bias"] = (width,)
            add(f"{here}.attn.cpb_mlp.0", 512, 2)
            add(f"{here}.attn.cpb_mlp.2", heads, 512, bias=False)
            add(f"{here}.attn.qkv", 3 * width, width, bias=False)
            add(f"{here}.attn.proj", width, width)
            add(f"{here}.norm1", width)
            add(f"{here}.norm2", width)
            add(f"{here}.mlp.fc1", hidden, width)
            add(f"{here}.mlp.fc2", width, hidden)
        if stage < len(config.depths) - 1:
            add(f"layers.{stage}.downsample.norm", 2 * width)
            add(f"layers.{stage}.downsample.reduction", 2 * width, 4 * width, bias=False)
    add("norm", config.channels[-1])
    add("head", classes, config.channels[-1])
    return shapes


def without_masks(shapes):
    return {name: shape for name, shape in shapes.items() if "attn_mask" not in name}


def test_windows_are_clipped_to_the_maps_of_their_image_size():
    large = swin2.VARIANTS["large_window12to24"]
    assert [large.windows(stage) for stage in range(4)] == [(24, 12), (24, 12), (24, 0), (12, 0)]
    assert [large.largest_offset(stage) for stage in range(4)] == [11, 11, 11, 5]
    tiny = swin2.VARIANTS["tiny_window16"]
    assert [tiny.windows(stage) for stage in range(4)] == [(16, 8), (16, 8), (16, 0), (8, 0)]
    assert [tiny.largest_offset(stage) for stage in range(4)] == [15, 15, 15, 7]
    assert [tiny.shift(0, block) for block in range(3)] == [0, 8, 0]
    own = dataclasses.replace(tiny, pretraining_windows=(0, 8, 0, 0))
    assert [own.largest_offset(stage) for stage in range(4)] == [15, 7, 15, 7]


@pytest.mark.parametrize("variant", swin2.VARIANTS)
def test_variants_are_inferred_from_masks_and_published_ones_without(variant):
    config = swin2.VARIANTS[variant]
    # Weights do not tell pretraining windows from the same windows trained from scratch.
    expected = swin2.VARIANTS[variant.replace("base_window12to16", "base_window16")]
    assert swin2.infer(shapes_in_files(config)) == expected
    assert from_mapping(swin2.Config, json.loads(json.dumps(to_mapping(config)))) == config
    published = {"tiny": "tiny_window16"} | {
        size: f"{size}_window12to24" for size in ("base", "large")
    }
    shapes, size = without_masks(shapes_in_files(config)), variant.split("_")[0]
    if size in published:
        assert swin2.infer(shapes) == swin2.VARIANTS[published[size]]
    else:
        with pytest.raises(WeightsError, match=r"attn_mask.*no published Swin V2 has embed_dim 96"):
            swin2.infer(shapes)


def test_any_shape_is_inferred_and_written_back():
    odd = dataclasses.replace(
        TINY, patch_size=2, mlp_ratio=1.5, num_heads=(4, 8), depths=(2, 3), image_size=72
    )
    for config in (TINY, odd):
        shapes = shapes_in_files(config)
        assert swin2.infer(shapes) == config
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        expected = jax.eval_shape(swin2.Encoder(config).init, jax.random.key(0), image)
        rng = np.random.default_rng(0)
        weights = {n: rng.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}
        table = swin2.rules(config)
        variables = convert(weights, table, expected)
        written = export(variables, table, names(variables, table))
        assert {name: array.shape for name, array in written.items()} == shapes
        for name, array in written.items():
            if "attn_mask" in name:
                assert set(np.unique(array)) == {0.0, -100.0}
            elif not name.startswith(("norm.", "head.")):
                np.testing.assert_array_equal(array, weights[name], err_msg=name)
        assert (written["norm.weight"] == 1).all() and not written["head.weight"].any()
        # Entries that are computed and not read may be missing, or have other windows or classes.
        for left in (without_masks(weights), {**weights, "head.bias": np.zeros(5)}):
            again = convert(left, table, expected)
            jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert swin2.infer({"layers.0.blocks.0.attn.qkv.weight": (288, 96)}) is None
    normalised = dataclasses.replace(TINY, output_norms=True)
    shapes = {**shapes_in_files(TINY), "norm0.weight": (8,), "norm0.bias": (8,)}
    assert swin2.infer(shapes) == normalised
    del shapes["patch_embed.proj.weight"]
    with pytest.raises(ValueError, match=r"lack 'patch_embed\.proj\.weight'"):
        swin2.infer(shapes)


@pytest.mark.parametrize(
    ("size", "shift", "largest"), [((8, 12), 2, 3), ((4, 4), 0, 5), ((6, 3), 0, 3), ((5, 9), 1, 2)]
)
def test_attention_compares_directions_over_the_padded_map(size, shift, largest):
    """Against attention between all pairs of tokens, written out pair by pair."""
    height, width = size
    window, heads, channels = 4, 2, 6
    module = swin2.WindowAttention(heads, window, shift, largest, jnp.float32)
    rng = np.random.default_rng(0)
    params = {
        "logit_scale": np.array([1.3, 6.0]),  # the second is clipped to ln 100
        "qkv_bias": rng.standard_normal(2 * channels),
        "position": {
            "fc1": {"kernel": rng.standard_normal((2, 512)), "bias": rng.standard_normal(512)},
            "fc2": {"kernel": 0.05 * rng.standard_normal((512, heads))},
        },
        "qkv": {"kernel": rng.standard_normal((channels, 3 * channels))},
        "projection": {
            "kernel": rng.standard_normal((channels, channels)),
            "bias": rng.standard_normal(channels),
        },
    }
    tokens = rng.standard_normal((1, height, width, channels))

    rows, columns = (-(-side // window) * window for side in size)
    padded = np.zeros((rows, columns, channels))
    padded[:height, :width] = tokens[0]
    bias = params["qkv_bias"]
    bias = np.concatenate([bias[:channels], np.zeros(channels), bias[channels:]])
    qkv = padded @ params["qkv"]["kernel"] + bias
    query, key, value = np.split(qkv.reshape(rows, columns, 3, heads, -1), 3, axis=2)

    def place(y, x):
        """A token's window, its position in it, and the side of the border that it came from."""
        y, x = (y - shift) % rows, (x - shift) % columns
        wrapped = (y >= rows - shift, x >= columns - shift)
        return (y // window, x // window), (y % window, x % window), wrapped

    def direction(vector):
        return vector / max(np.linalg.norm(vector), 1e-12)

    def position_bias(here, there):
        offset = [8 * (a - b) / largest for a, b in zip(here, there, strict=True)]
        offset = [np.sign(o) * np.log2(1 + abs(o)) / 3 for o in offset]
        hidden = offset @ params["position"]["fc1"]["kernel"] + params["position"]["fc1"]["bias"]
        return 16 / (1 + np.exp(-(np.maximum(hidden, 0) @ params["position"]["fc2"]["kernel"])))

    expected = np.zeros((height, width, heads, channels // heads))
    for y, x, head in np.ndindex(height, width, heads):
        scores, values = [], []
        here = place(y, x)
        for other in np.ndindex(rows, columns):
            there = place(*other)
            if there[0] != here[0]:
                continue
            cosine = direction(query[y, x, 0, head]) @ direction(key[*other, 0, head])
            score = cosine * min(np.exp(params["logit_scale"][head]), 100)
            score += position_bias(here[1], there[1])[head]
            scores.append(score - 100 * (there[2] != here[2]))
            values.append(value[*other, 0, head])
        weights = np.exp(scores - np.max(scores))
        expected[y, x, head] = weights / weights.sum() @ np.array(values)
    expected = expected.reshape(height, width, channels) @ params["projection"]["kernel"]
    expected += params["projection"]["bias"]

    params = jax.tree.map(jnp.asarray, params)
    found = module.apply({"params": params}, jnp.asarray(tokens))
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_norms_come_last_and_those_of_blocks_start_at_zero():
    tokens = jax.random.normal(jax.random.key(1), (1, 4, 4, 6))
    block = swin2.Block(2, 4, 0, 12, 0.0, 3, jnp.float32)
    unchanged, variables = block.init_with_output(jax.random.key(0), tokens, False)
    np.testing.assert_array_equal(unchanged, tokens)
    norms = {"scale": jnp.ones(6), "bias": jnp.zeros(6)}
    (changed,) = block.apply({"params": {**variables["params"], "norm2": norms}}, tokens, False)
    added = changed - tokens[0]
    np.testing.assert_allclose(added.mean(-1), 0, atol=1e-6)
    assert (added.std(-1) > 0.1).all()
    merged, variables = swin2.PatchMerging(jnp.float32).init_with_output(jax.random.key(0), tokens)
    assert variables["params"]["norm"]["scale"].shape == (12,) and merged.shape == (1, 2, 2, 12)
    np.testing.assert_allclose(merged.mean(-1), 0, atol=1e-6)
    assert (merged.std(-1) > 0.9).all()


def test_feature_sizes_and_types():
    encoder = swin2.Encoder(dataclasses.replace(TINY, output_norms=True), dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 37, 50, 3), jnp.float32)
    features, variables = jax.eval_shape(encoder.init_with_output, jax.random.key(0), image)
    assert [array.shape for array in features] == [(2, 10, 13, 8), (2, 5, 7, 16)]
    assert {array.dtype for array in features} == {jnp.dtype(jnp.bfloat16)}
    assert {array.dtype for array in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert {"norm0", "norm1"} < set(variables["params"])


def test_padded_keys_without_direction_keep_gradients_finite():
    module = swin2.WindowAttention(2, 4, 2, 3, jnp.float32)
    tokens = jax.random.normal(jax.random.key(1), (1, 5, 6, 6))
    variables = module.init(jax.random.key(0), tokens)

    @jax.jit
    @jax.grad
    def gradient(variables):
        return jnp.sin(module.apply(variables, tokens)).sum()

    for path, leaf in jax.tree.leaves_with_path(gradient(variables)):
        assert np.isfinite(leaf).all() and leaf.any(), jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretraining_windows": (12, 6)}, "one entry for each of the 4 stages"),
        ({"pretraining_windows": (12, 12, 12, 1)}, "at least 2"),
        ({"image_size": 250}, "image_size is 250.*multiple of the coarsest map's stride, 32"),
        ({"window_size": 1}, "window_size is 1"),
    ],
)
def test_bad_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        swin2.Config(**options)
