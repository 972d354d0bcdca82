"""ZoeDepth's metric heads (Bhat et al. 2023, arXiv:2302.12288, sections 3.1 and 3.2).

A pixel's depth is the mean of *bin centres* under a distribution over the bins. Centres are
estimated from the coarsest map of a relative network and then moved towards *attractors* at each of
its fused maps, from coarse to fine. The distribution is log-binomial, with a probability and a
temperature per pixel. With several *domains*, such as indoor and outdoor, each has its own bins,
and a small transformer, the *router*, chooses among them.

The computation follows the published code; comments mark where that differs from the paper.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffdepth_jax.models.layers import Conv, LayerNorm, Linear, gelu
from diffdepth_jax.models.networks.dpt_head import Decoded
from diffdepth_jax.models.tables import conv_rules, linear_rules, norm_rules, width
from diffdepth_jax.models.transformer import Attention
from diffdepth_jax.ops.image import resize_bilinear, size_of
from diffdepth_jax.weights.rules import Constant, Row, Rule, Rules, linear

# Centres are positive and unbounded, or fractions of a depth range.
Bins = Literal["softplus", "normed"]

_ATTRACTION = 300.0  # fixed: the published code ignores its config's attractor_alpha
_WIDTH_EPS = 1e-3  # for normed bins and attractors
_PAIR_EPS = 1e-4
_SMALLEST_PROBABILITY = 1e-4
_STIRLING_EPS = 1e-7
_ROUTER_EPS = 1e-5  # of LayerNorm


PUBLISHED_DOMAINS = ("nyu", "kitti")  # in the router's order
DOMAIN_ATTRACTORS = 16  # at every level of the published network with domains


@dataclass(frozen=True)
class HeadsConfig:
    """Config of the heads.

    Attributes:
        bins: see `Bins`.
        num_bins: number of bin centres.
        domains: names of the domains in the router's order; empty without a router.
        attractors: number of attractors per level, coarse to fine.
        embedding_features: channels of the embeddings.
        seed_features: hidden channels of the layers that estimate the first centres.
        projector_features: hidden channels of the layers that turn maps into embeddings.
        distribution_features: hidden channels of the layers that estimate the distribution.
        temperatures: the smallest and largest temperature of the distribution.
        router_features, router_heads, router_depth, router_hidden_features: channels, attention
            heads and blocks of the router, and hidden channels of its feed-forward parts.
    """

    bins: Bins = "softplus"
    num_bins: int = 64
    domains: tuple[str, ...] = ()
    attractors: tuple[int, ...] = (16, 8, 4, 1)
    embedding_features: int = 128
    seed_features: int = 256
    projector_features: int = 128
    distribution_features: int = 80
    temperatures: tuple[float, float] = (0.0212, 50.0)
    router_features: int = 128
    router_heads: int = 4
    router_depth: int = 4
    router_hidden_features: int = 1024

    def __post_init__(self) -> None:
        names = (
            "num_bins",
            "embedding_features",
            "seed_features",
            "projector_features",
            "distribution_features",
            "router_features",
            "router_heads",
            "router_depth",
            "router_hidden_features",
        )
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if not self.attractors or min(self.attractors) < 1:
            raise ValueError(f"attractors are {self.attractors}; every level needs at least one")
        if not 0 < self.temperatures[0] < self.temperatures[1]:
            raise ValueError(
                f"temperatures are {self.temperatures}; they must be positive and increasing"
            )
        if self.router_features % (2 * self.router_heads) and self.domains:
            raise ValueError(
                f"router_features {self.router_features} must be a multiple of twice router_heads "
                f"{self.router_heads}"
            )
        if len(self.domains) == 1 or len(set(self.domains)) < len(self.domains):
            raise ValueError(
                f"domains are {self.domains}; there must be none, or at least two different ones"
            )
        odd = [name for name in self.domains if not re.fullmatch(r"\w+", name)]
        if odd:
            raise ValueError(f"domains {odd} must consist of letters, digits and underscores")
        if self.domains and self.bins == "normed":
            raise ValueError(
                "bins='normed' needs a single depth range, so it cannot be used with domains"
            )


class MetricHeads(nn.Module):
    """Output of a relative network's head to depth in metres.

    Attributes:
        config: the heads' config.
        depth_range: range of normed bins in metres; None for others.
        dtype: type used by convolutions and matrix products.
    """

    config: HeadsConfig
    depth_range: tuple[float, float] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, decoded: Decoded) -> Float[Array, "b h w 1"]:
        """Depth in metres at the size of `decoded.output`, float32."""
        config, dtype = self.config, self.dtype
        features = decoded.coarsest.shape[-1]
        bottleneck = Conv(features, 1, dtype=dtype, name="bottleneck")(decoded.coarsest)

        def embedding(features: Array, name: str) -> Array:
            sizes = (config.projector_features, config.embedding_features)
            return TwoConvs(sizes, dtype=dtype, name=name)(features)

        embeddings = [embedding(bottleneck, "seed_projector")]
        for level, fused in enumerate(reversed(decoded.fused)):
            embeddings.append(embedding(fused, f"projector{level}"))
        hidden = decoded.hidden.astype(dtype)
        if not config.domains:
            hidden = jnp.concatenate([hidden, decoded.output.astype(dtype)], -1)

        arguments = (bottleneck, embeddings, hidden)
        fields = (config, self.depth_range, dtype)
        bins = [BinHead(*fields, name=f"bins{i}") for i in range(max(1, len(config.domains)))]
        if not config.domains:
            return bins[0](*arguments)
        votes = Router(config, dtype, name="router")(bottleneck)
        if self.is_initializing():
            return cast(Array, sum(each(*arguments) for each in bins))
        # One choice per batch, as published. Only the chosen domain's bins are computed.
        domain = jnp.argmax(votes.sum(0))
        params = jax.tree.map(
            lambda *leaves: jnp.stack(leaves)[domain], *(each.variables["params"] for each in bins)
        )
        head = BinHead(*fields, parent=None)
        return cast(Array, head.apply({"params": params}, *arguments))


class TwoConvs(nn.Module):
    """Two 1x1 convolutions with an activation in between."""

    features: tuple[int, int]
    activation: Any = jax.nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        hidden, output = self.features
        features = self.activation(Conv(hidden, 1, dtype=self.dtype, name="conv1")(features))
        return Conv(output, 1, dtype=self.dtype, name="conv2")(features)


class BinHead(nn.Module):
    """Embeddings to bin centres and a distribution over them, and from these to depth."""

    config: HeadsConfig
    depth_range: tuple[float, float] | None
    dtype: Any

    @nn.compact
    def __call__(
        self,
        bottleneck: Float[Array, "b h w c"],
        embeddings: Sequence[Float[Array, "b _ _ e"]],
        hidden: Float[Array, "b h2 w2 f"],
    ) -> Float[Array, "b h2 w2 1"]:
        """Depth.

        Args:
            bottleneck: the map from which the first centres are estimated.
            embeddings: embeddings of the bottleneck and of the levels, coarse to fine.
            hidden: map that the distribution is estimated from, together with the last embedding.
        """
        config, size = self.config, size_of(hidden)
        centres = self._seed(bottleneck)
        for level, (coarser, finer) in enumerate(itertools.pairwise(embeddings)):
            here = size_of(finer)
            attractors = self._attractors(finer + resize_bilinear(coarser, here), level)
            centres = _attract(resize_bilinear(centres, here), attractors)
        # Sorted only for the result, not between levels.
        if self.depth_range is not None:
            low, high = self.depth_range
            centres = jnp.clip(jnp.sort(low + (high - low) * centres), low, high)

        both = jnp.concatenate([hidden, resize_bilinear(embeddings[-1], size)], -1)
        sizes = (config.distribution_features, 4)
        pairs = TwoConvs(sizes, gelu, self.dtype, name="distribution")(both)
        weights = _distribution(pairs.astype(jnp.float32), config.num_bins, config.temperatures)
        return (weights * resize_bilinear(centres, size)).sum(-1, keepdims=True)

    def _seed(self, bottleneck: Array) -> Array:
        sizes = (self.config.seed_features, self.config.num_bins)
        seed = TwoConvs(sizes, dtype=self.dtype, name="seed")(bottleneck).astype(jnp.float32)
        if self.config.bins == "softplus":
            return jax.nn.softplus(seed)
        widths = jax.nn.relu(seed) + _WIDTH_EPS
        widths /= widths.sum(-1, keepdims=True)
        return jnp.cumsum(widths, -1) - widths / 2

    def _attractors(self, embedding: Array, level: int) -> Array:
        config, normed = self.config, self.config.bins == "normed"
        count = config.attractors[level] * (2 if normed else 1)
        sizes = (config.embedding_features, count)
        attractors = TwoConvs(sizes, dtype=self.dtype, name=f"attractor{level}")(embedding)
        attractors = attractors.astype(jnp.float32)
        if not normed:
            return jax.nn.softplus(attractors)
        # The first of each pair, not its fraction of their sum as in the paper.
        return jax.nn.relu(attractors[..., ::2]) + _WIDTH_EPS


def _attract(
    centres: Float[Array, "b h w n"], attractors: Float[Array, "b h w a"]
) -> Float[Array, "b h w n"]:
    """Moves centres by the mean over the attractors."""
    count = attractors.shape[-1]
    shift = jnp.zeros_like(centres)
    for index in range(count):  # one at a time, as all at once would take n x a values per pixel
        offset = attractors[..., index : index + 1] - centres
        shift += offset / (1 + _ATTRACTION * offset**2)
    return centres + shift / count


def _distribution(
    pairs: Float[Array, "b h w 4"], num_bins: int, temperatures: tuple[float, float]
) -> Float[Array, "b h w n"]:
    """Bin weights: the softmax of a log-binomial distribution at a temperature.

    Args:
        pairs: two pairs per pixel; their ratios give the probability and the temperature.
        num_bins: n.
        temperatures: the smallest and largest temperature.
    """
    pairs = jax.nn.softplus(pairs) + _PAIR_EPS
    probability, share = (
        pairs[..., first : first + 1] / pairs[..., first : first + 2].sum(-1, keepdims=True)
        for first in (0, 2)
    )
    low, high = temperatures
    log_hit = jnp.log(jnp.clip(probability, _SMALLEST_PROBABILITY, 1.0))
    log_miss = jnp.log(jnp.clip(1 - probability, _SMALLEST_PROBABILITY, 1.0))
    hits = np.arange(num_bins, dtype=np.float32)[None, None, None]
    choices = _log_choices(num_bins).astype(np.float32)[None, None, None]
    logits = choices + hits * log_hit + (num_bins - 1 - hits) * log_miss
    return jax.nn.softmax(logits / (low + (high - low) * share))


def _log_choices(num_bins: int) -> np.ndarray:
    """log of the binomial coefficient (n - 1 choose k), by Stirling's formula; float64 [n]."""
    n, k = num_bins - 1 + _STIRLING_EPS, np.arange(num_bins) + _STIRLING_EPS
    return n * np.log(n) - k * np.log(k) - (n - k) * np.log(n - k + _STIRLING_EPS)


class Router(nn.Module):
    """Domain logits from the bottleneck, by a transformer over its pixels."""

    config: HeadsConfig
    dtype: Any

    @nn.compact
    def __call__(self, bottleneck: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        config, dtype = self.config, self.dtype
        features = config.router_features
        tokens = Conv(features, 1, dtype=dtype, name="embed")(bottleneck)
        tokens = tokens.reshape(tokens.shape[0], -1, features)
        tokens = jnp.pad(
            tokens, ((0, 0), (1, 0), (0, 0))
        )  # a zero token that stands for the whole map
        tokens += _sinusoids(tokens.shape[1], features).astype(dtype)[None]
        for index in range(config.router_depth):
            tokens = RouterBlock(config, dtype, name=f"block{index}")(tokens)
        hidden = Linear(features, dtype=dtype, name="vote1")(tokens[:, 0])
        votes = Linear(len(config.domains), dtype=dtype, name="vote2")(jax.nn.relu(hidden))
        return votes.astype(jnp.float32)


class RouterBlock(nn.Module):
    """Attention and a feed-forward part with shortcuts, each with a norm after the sum."""

    config: HeadsConfig
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        config, dtype = self.config, self.dtype
        attention = Attention(config.router_heads, dtype=dtype, name="attention")
        tokens = LayerNorm(_ROUTER_EPS, name="norm1")(tokens + attention(tokens))
        hidden = Linear(config.router_hidden_features, dtype=dtype, name="fc1")(tokens)
        hidden = Linear(tokens.shape[-1], dtype=dtype, name="fc2")(jax.nn.relu(hidden))
        return LayerNorm(_ROUTER_EPS, name="norm2")(tokens + hidden)


def _sinusoids(length: int, features: int) -> np.ndarray:
    """Position embeddings [length, features]: all sines, then all cosines."""
    rates = 10000.0 ** -(np.arange(0, features, 2) / features)
    angles = np.arange(length)[:, None] * rates[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


# ---- weights -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Names:
    """Patterns of the names that differ between layouts.

    Attributes:
        pair: the two convolutions of a `TwoConvs`.
        block: a block of the router, with its number as a group.
        votes: the last two layers of the router.
        fused_attention: whether queries, keys and values are stored as one entry.
    """

    pair: tuple[str, str]
    block: str
    votes: tuple[str, str]
    fused_attention: bool


AUTHORS = Names(
    pair=(r"_net\.0", r"_net\.2"),
    block=r"patch_transformer\.transformer_encoder\.layers\.(\d+)",
    votes=(r"mlp_classifier\.0", r"mlp_classifier\.2"),
    fused_attention=True,
)
TRANSFORMERS = Names(
    pair=("conv1", "conv2"),
    block=r"patch_transformer\.transformer_encoder\.(\d+)",
    votes=(r"mlp_classifier\.linear1", r"mlp_classifier\.linear2"),
    fused_attention=False,
)


def rules(config: HeadsConfig, names: Names) -> Rules:
    """The conversion table for a layout's names."""

    def pair(key: str, path: str, ends: tuple[str, str] = names.pair) -> Rules:
        first, second = (rf"{key}\.{end}" for end in ends)
        return (*conv_rules(first, f"{path}/conv1"), *conv_rules(second, f"{path}/conv2"))

    rows: list[Row] = [
        *conv_rules("conv2", "bottleneck"),
        *pair("seed_projector", "seed_projector"),
        *pair(r"projectors\.(\d+)", r"projector\1"),
    ]
    for index, domain in enumerate(config.domains or ("",)):
        here = f"bins{index}"
        several, below = ("s", rf"\.{domain}") if domain else ("", "")
        rows += pair(f"seed_bin_regressor{several}{below}", f"{here}/seed")
        rows += pair(rf"attractors{below}\.(\d+)", rf"{here}/attractor\1")
        distribution = f"conditional_log_binomial{below}"
        rows += pair(distribution, f"{here}/distribution", (r"mlp\.0", r"mlp\.2"))
        if names.fused_attention:  # the authors' layout: transformers does not store these
            rows += _constants(rf"{distribution}\.log_binomial_transform", config.num_bins)
    if config.domains:
        rows += _router_rules(names)
    return tuple(rows)


def _constants(root: str, num_bins: int) -> Rules:
    reason = "a constant computed from the number of bins"
    return (
        Constant(rf"{root}\.k_idx", reason, lambda: np.arange(num_bins).reshape(1, num_bins, 1, 1)),
        Constant(
            rf"{root}\.K_minus_1", reason, lambda: np.full((1, 1, 1, 1), num_bins - 1, np.float32)
        ),
    )


def _router_rules(names: Names) -> Rules:
    here = r"router/block\1"
    attention = rf"{names.block}\.self_attn"
    if names.fused_attention:
        qkv: Rules = (
            Rule(rf"{attention}\.in_proj_weight", f"params/{here}/attention/qkv/kernel", linear),
            Rule(rf"{attention}\.in_proj_bias", f"params/{here}/attention/qkv/bias"),
        )
    else:
        qkv = tuple(
            row
            for index, name in enumerate(("query", "key", "value"))
            for row in (
                Rule(
                    rf"{attention}\.{name}\.weight",
                    f"params/{here}/attention/qkv/kernel",
                    linear,
                    part=(index, 3),
                ),
                Rule(
                    rf"{attention}\.{name}\.bias",
                    f"params/{here}/attention/qkv/bias",
                    part=(index, 3),
                ),
            )
        )
    return (
        *conv_rules(r"patch_transformer\.embedding_convPxP", "router/embed"),
        *qkv,
        *linear_rules(rf"{attention}\.out_proj", f"{here}/attention/projection"),
        *(
            row
            for index in (1, 2)
            for row in (
                *linear_rules(rf"{names.block}\.linear{index}", f"{here}/fc{index}"),
                *norm_rules(rf"{names.block}\.norm{index}", f"{here}/norm{index}"),
                *linear_rules(names.votes[index - 1], f"router/vote{index}"),
            )
        ),
    )


def infer(
    shapes: Mapping[str, tuple[int, ...]],
    names: Names,
    domains: Sequence[str] | None = None,
    bins: Bins | None = None,
) -> HeadsConfig | None:
    """The config inferred from the names and shapes of weights, or None.

    Args:
        shapes: shapes of the heads' weights only.
        names: the names in their layout.
        domains: in the router's order, if known; otherwise they must be the published ones.
        bins: kind of bins, if known. Otherwise it is inferred from the numbers of attractors:
            normed bins have two channels per attractor; the published network without domains has
            one attractor at the finest level, the one with domains 16 at every level.
    """
    first, second = names.pair
    found = {
        match[1] for name in shapes if (match := re.match(r"seed_bin_regressors\.(\w+)\.", name))
    }
    if domains is None:  # names do not reveal the order
        domains = PUBLISHED_DOMAINS if found else ()
    if set(domains) != found:
        raise ValueError(f"the weights have domains {sorted(found)}, not {sorted(domains)}")
    below = rf"\.(?:{'|'.join(map(re.escape, found))})" if found else ""
    several = "s" if found else ""
    channels: list[int] = []
    while (
        count := width(shapes, rf"attractors{below}\.{len(channels)}\.{second}\.\w+")
    ) is not None:
        channels.append(count)
    widths = {
        "num_bins": width(shapes, rf"seed_bin_regressor{several}{below}\.{second}\.\w+"),
        "embedding_features": width(shapes, rf"(seed_projector|projectors\.\d+)\.{second}\.\w+"),
        "seed_features": width(shapes, rf"seed_bin_regressor{several}{below}\.{first}\.\w+"),
        "projector_features": width(shapes, rf"(seed_projector|projectors\.\d+)\.{first}\.\w+"),
        "distribution_features": width(shapes, rf"conditional_log_binomial{below}\.mlp\.0\.\w+"),
    }
    if found:
        widths["router_features"] = width(shapes, rf"{names.block}\.norm\d\.\w+")
        widths["router_hidden_features"] = width(shapes, rf"{names.block}\.linear1\.\w+")
        blocks = {match[1] for name in shapes if (match := re.match(names.block, name))}
        widths["router_depth"] = len(blocks)
    if not channels or None in widths.values():
        return None
    if bins is None:
        pairs = min(channels) > DOMAIN_ATTRACTORS if found else not any(n % 2 for n in channels)
        bins = "normed" if pairs else "softplus"
    attractors = tuple(count // 2 if bins == "normed" else count for count in channels)
    fields = cast(dict[str, Any], widths)
    return HeadsConfig(bins=bins, domains=tuple(domains), attractors=attractors, **fields)
