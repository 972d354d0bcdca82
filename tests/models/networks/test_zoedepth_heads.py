"""ZoeDepth's heads, against their definition in float64 NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.errors import WeightsError
from diffdepth_jax.models.networks import zoedepth_heads
from diffdepth_jax.models.networks.dpt_head import Decoded
from diffdepth_jax.models.networks.zoedepth_heads import HeadsConfig, MetricHeads
from diffdepth_jax.weights import rules

SMALL = {
    "num_bins": 6,
    "attractors": (4, 3, 2, 1),
    "embedding_features": 8,
    "seed_features": 10,
    "projector_features": 12,
    "distribution_features": 14,
}
ROUTER = {"router_features": 16, "router_depth": 2, "router_hidden_features": 20}
CONFIGS = {
    "softplus": HeadsConfig(**SMALL),
    "normed": HeadsConfig(bins="normed", **SMALL),
    "domains": HeadsConfig(domains=("nyu", "kitti"), **SMALL, **ROUTER),
}
RANGE = (0.5, 30.0)
every_kind = pytest.mark.parametrize("kind", CONFIGS)


def heads(kind, **options):
    depth_range = RANGE if kind == "normed" else None
    return MetricHeads(CONFIGS[kind], depth_range, **options)


def decoded(batch=2, seed=0):
    """Outputs of a core with 5 channels, whose coarse maps have an odd number of rows."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal((batch, *shape)), jnp.float32)

    sizes = [(10, 12), (5, 6), (4, 4), (3, 3)]
    return Decoded(
        jax.nn.relu(draw(20, 24, 1)),
        jax.nn.relu(draw(20, 24, 4)),
        tuple(draw(*size, 5) for size in sizes),
        draw(3, 3, 5),
    )


def variables_of(module, inputs, seed=1):
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.5
        offset = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(offset + 2 * scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


# ---- the definition ------------------------------------------------------------------------------


def softplus(array):
    return np.log1p(np.exp(array))


def dense(params, array):
    kernel = np.float64(params["kernel"])
    return array @ kernel.reshape(kernel.shape[-2:]) + np.float64(params["bias"])


def two_convs(params, array, activation=lambda array: np.maximum(array, 0)):
    return dense(params["conv2"], activation(dense(params["conv1"], array)))


def gelu(array):
    return array * 0.5 * (1 + np.vectorize(math.erf)(array / math.sqrt(2)))


def resize(array, size):
    """Bilinear, with aligned corners."""
    for axis, length in zip((1, 2), size, strict=True):
        position = np.linspace(0, array.shape[axis] - 1, length)
        low = np.minimum(position.astype(int), max(array.shape[axis] - 2, 0))
        high = np.minimum(low + 1, array.shape[axis] - 1)
        share = (position - low).reshape([-1 if i == axis else 1 for i in range(4)])
        array = array.take(low, axis) * (1 - share) + array.take(high, axis) * share
    return array


def seed_centres(config, params, bottleneck):
    found = two_convs(params["seed"], bottleneck)
    if config.bins == "softplus":
        return softplus(found)
    widths = np.maximum(found, 0) + 1e-3
    widths = (RANGE[1] - RANGE[0]) * widths / widths.sum(-1, keepdims=True)
    edges = np.cumsum(np.concatenate([np.full_like(widths[..., :1], RANGE[0]), widths], -1), -1)
    centres = (edges[..., :-1] + edges[..., 1:]) / 2
    return (centres - RANGE[0]) / (RANGE[1] - RANGE[0])


def attract(config, params, centres, embedding, count):
    found = two_convs(params, embedding)
    if config.bins == "softplus":
        attractors = softplus(found)
    else:
        attractors = (np.maximum(found, 0) + 1e-3).reshape(*found.shape[:3], count, 2)[..., 0]
    offset = attractors[..., :, None] - centres[..., None, :]
    return centres + (offset / (1 + 300 * offset**2)).mean(-2)


def probabilities(pairs, num_bins):
    """Probabilities of the bins at each pixel."""
    p0, p1, t0, t1 = np.moveaxis(pairs, -1, 0)
    probability = (p0 + 1e-4) / (p0 + p1 + 2e-4)
    temperature = (50 - 0.0212) * (t0 + 1e-4) / (t0 + t1 + 2e-4) + 0.0212
    n, logits = num_bins - 1, []
    for k in range(num_bins):
        a, b = n + 1e-7, k + 1e-7
        choices = a * math.log(a) - b * math.log(b) - (a - b) * math.log(a - b + 1e-7)
        hit, miss = np.log([each.clip(1e-4, 1) for each in (probability, 1 - probability)])
        logits.append((choices + k * hit + (n - k) * miss) / temperature)
    weights = np.exp(np.stack(logits, -1) - np.max(logits, 0)[..., None])
    return weights / weights.sum(-1, keepdims=True)


def depth_of(config, params, bottleneck, embeddings, hidden):
    centres = seed_centres(config, params, bottleneck)
    for level, count in enumerate(config.attractors):
        size = embeddings[level + 1].shape[1:3]
        embedding = embeddings[level + 1] + resize(embeddings[level], size)
        attractor = params[f"attractor{level}"]
        centres = attract(config, attractor, resize(centres, size), embedding, count)
    if config.bins == "normed":
        centres = np.sort(centres * (RANGE[1] - RANGE[0]) + RANGE[0], -1).clip(*RANGE)
    size = hidden.shape[1:3]
    both = np.concatenate([hidden, resize(embeddings[-1], size)], -1)
    pairs = softplus(two_convs(params["distribution"], both, gelu))
    weights = probabilities(pairs, config.num_bins)
    return (weights * resize(centres, size)).sum(-1, keepdims=True)


def layer_norm(params, array):
    array = array - array.mean(-1, keepdims=True)
    array = array / np.sqrt((array**2).mean(-1, keepdims=True) + 1e-5)
    return array * np.float64(params["scale"]) + np.float64(params["bias"])


def votes_of(config, params, bottleneck):
    tokens = dense(params["embed"], bottleneck)
    batch, _, _, channels = tokens.shape
    tokens = tokens.reshape(batch, -1, channels)
    tokens = np.concatenate([np.zeros_like(tokens[:, :1]), tokens], 1)
    for position, index in np.ndindex(tokens.shape[1], channels // 2):
        angle = position * math.exp(-2 * index * math.log(10000) / channels)
        tokens[:, position, index] += math.sin(angle)
        tokens[:, position, channels // 2 + index] += math.cos(angle)
    for number in range(config.router_depth):
        block = params[f"block{number}"]
        qkv = dense(block["attention"]["qkv"], tokens)
        parts = qkv.reshape(batch, -1, 3, config.router_heads, channels // config.router_heads)
        query, key, value = np.moveaxis(parts, 2, 0)
        logits = np.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(tokens.shape)
        attended = dense(block["attention"]["projection"], mixed)
        tokens = layer_norm(block["norm1"], tokens + attended)
        hidden = dense(block["fc2"], np.maximum(dense(block["fc1"], tokens), 0))
        tokens = layer_norm(block["norm2"], tokens + hidden)
    return dense(params["vote2"], np.maximum(dense(params["vote1"], tokens[:, 0]), 0))


def definition(config, params, inputs):
    inputs = jax.tree.map(np.float64, inputs)
    bottleneck = dense(params["bottleneck"], inputs.coarsest)
    embeddings = [two_convs(params["seed_projector"], bottleneck)]
    for level, fused in enumerate(inputs.fused[::-1]):
        embeddings.append(two_convs(params[f"projector{level}"], fused))
    hidden, domain = inputs.hidden, 0
    if config.domains:
        domain = int(np.argmax(votes_of(config, params["router"], bottleneck).sum(0)))
    else:
        hidden = np.concatenate([hidden, inputs.output], -1)
    return depth_of(config, params[f"bins{domain}"], bottleneck, embeddings, hidden)


@every_kind
def test_depth_is_as_defined(kind):
    module, inputs = heads(kind), decoded()
    variables = variables_of(module, inputs)
    want = definition(CONFIGS[kind], variables["params"], inputs)
    got = np.asarray(jax.jit(module.apply)(variables, inputs))
    assert got.shape == want.shape == (2, 20, 24, 1) and want.std() > 0.02 * want.mean() > 0
    assert np.linalg.norm(got - want) < 2e-6 * np.linalg.norm(want)


def test_the_router_votes_as_defined_and_selects_the_head():
    module, inputs = heads("domains"), decoded(3)
    variables = variables_of(module, inputs)
    bottleneck = jnp.asarray(np.random.default_rng(2).standard_normal((3, 3, 4, 5)), jnp.float32)
    router = zoedepth_heads.Router(CONFIGS["domains"], jnp.float32)
    params = variables["params"]["router"]
    votes = jax.jit(router.apply)({"params": params}, bottleneck)
    want = votes_of(CONFIGS["domains"], params, np.float64(bottleneck))
    np.testing.assert_allclose(votes, want, rtol=1e-4, atol=1e-5)

    apply = jax.jit(module.apply)

    def routed(first, inputs):
        """The depth if all images vote +1 or -1 for the first domain."""
        changed = jax.tree.map(jnp.zeros_like, params)
        changed["vote1"]["bias"] = changed["vote1"]["bias"].at[0].set(1.0)
        changed["vote2"]["kernel"] = changed["vote2"]["kernel"].at[0, 0].set(first)
        tree = {**variables["params"], "router": changed}
        return np.asarray(apply({"params": tree}, inputs))

    first, second = routed(1.0, inputs), routed(-1.0, inputs)
    swapped = {**variables["params"]}
    swapped["bins0"], swapped["bins1"] = swapped["bins1"], swapped["bins0"]
    assert abs(first - second).max() > 0.01
    variables = {"params": swapped}
    np.testing.assert_array_equal(first, routed(-1.0, inputs))


def test_images_of_one_batch_share_a_domain():
    """The votes of all images are summed, so an image can be outvoted."""
    module, inputs = heads("domains"), decoded(2)
    variables = variables_of(module, inputs)
    params = variables["params"]

    def votes(image):
        bottleneck = dense(params["bottleneck"], np.float64(image))
        return votes_of(CONFIGS["domains"], params["router"], bottleneck)

    for seed in range(30):
        inputs = decoded(2, seed)
        single = votes(inputs.coarsest)
        if len(set(single.argmax(-1))) == 2:
            break
    else:
        pytest.fail("no two images with different domains were found")
    apply = jax.jit(module.apply)
    together = np.asarray(apply(variables, inputs))
    alone = [
        np.asarray(apply(variables, jax.tree.map(lambda a, i=i: a[i : i + 1], inputs)))[0]
        for i in (0, 1)
    ]
    outvoted = int(np.argmin([votes[single.sum(0).argmax()] > votes.mean() for votes in single]))
    assert abs(together[outvoted] - alone[outvoted]).max() > 0.01
    np.testing.assert_allclose(together[1 - outvoted], alone[1 - outvoted], rtol=1e-5)


@pytest.mark.parametrize("kind", ["normed", "domains"])
def test_gradients_match_the_definition(kind):
    """Of a weighted sum of depth, for each part along a random direction."""
    module, inputs = heads(kind), decoded(1)
    params = variables_of(module, inputs)["params"]
    weights = np.random.default_rng(4).standard_normal((1, 20, 24, 1)).astype(np.float32)
    gradients = jax.jit(
        jax.grad(lambda params: (module.apply({"params": params}, inputs) * weights).sum())
    )(params)
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params)

    def value(step, top):
        moved = {
            name: jax.tree.map(lambda leaf, d: leaf + step * d, np_tree(tree), direction[name])
            if name == top
            else np_tree(tree)
            for name, tree in params.items()
        }
        return (definition(CONFIGS[kind], moved, inputs) * weights).sum()

    for top in params:
        slope = sum(
            float((np.float64(g) * d).sum())
            for g, d in zip(
                jax.tree.leaves(gradients[top]), jax.tree.leaves(direction[top]), strict=True
            )
        )
        step = 1e-6
        want = (value(step, top) - value(-step, top)) / (2 * step)
        assert slope == pytest.approx(want, rel=1e-3, abs=1e-3), top


def np_tree(tree):
    return jax.tree.map(np.float64, tree)


@every_kind
@pytest.mark.parametrize("names", [zoedepth_heads.AUTHORS, zoedepth_heads.TRANSFORMERS])
def test_weights_survive_a_round_trip_and_determine_the_config(kind, names):
    module, inputs = heads(kind), decoded(1)
    if kind == "domains":
        config = dataclasses.replace(CONFIGS[kind], attractors=(16,) * 4)
        module = MetricHeads(config)
    variables = variables_of(module, inputs)
    table = zoedepth_heads.rules(module.config, names)
    state_dict = rules.export(variables, table, rules.names(variables, table))
    again = rules.convert(state_dict, table, variables)
    jax.tree.map(np.testing.assert_array_equal, dict(again), dict(variables))
    found = zoedepth_heads.infer({name: a.shape for name, a in state_dict.items()}, names)
    assert found == module.config
    if names is zoedepth_heads.AUTHORS:
        for name in [name for name in state_dict if name.endswith(("k_idx", "K_minus_1"))]:
            del state_dict[name]  # entries that no leaf needs may be missing
    again = rules.convert(state_dict, table, variables)
    name = next(name for name in state_dict if "projectors.1" in name)
    del state_dict[name]
    with pytest.raises(WeightsError, match="projector1/conv1"):
        rules.convert(state_dict, table, variables)


def test_domains_whose_order_is_unknown_are_refused():
    shapes = {"seed_bin_regressors.ruin._net.2.bias": (6,)}
    with pytest.raises(ValueError, match="ruin"):
        zoedepth_heads.infer(shapes, zoedepth_heads.AUTHORS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_bins": 0}, "num_bins is 0"),
        ({"attractors": (1, 0)}, "attractors"),
        ({"temperatures": (2.0, 1.0)}, "temperatures"),
        ({"domains": ("nyu",)}, "at least two different"),
        ({"domains": ("nyu", "nyu")}, "differ"),
        ({"domains": ("nyu", "a.b")}, "letters"),
        ({"domains": ("nyu", "kitti"), "bins": "normed"}, "cannot be used with domains"),
        ({"domains": ("nyu", "kitti"), "router_features": 12}, "router_features 12"),
    ],
)
def test_impossible_heads_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HeadsConfig(**fields)
