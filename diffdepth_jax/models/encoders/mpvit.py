"""MPViT, the multi-path vision transformer (Lee et al. 2022, arXiv:2112.11010).

In each stage, every path embeds the map with one 3x3 convolution more than the path before. A
transformer runs on each path and a convolutional block on the first, and their outputs are merged.
Attention is factorised (softmax over keys only, so the cost is linear in the number of tokens), and
positions are encoded by depthwise convolutions that the layers of a path share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdepth_jax import registry
from diffdepth_jax.models.layers import (
    BatchNorm,
    Conv,
    DropPath,
    LayerNorm,
    Mlp,
    TransformerLinear,
    drop_path_rates,
    normal,
)
from diffdepth_jax.models.tables import (
    Layout,
    batch_norm_rules,
    conv_rules,
    count,
    linear_rules,
    norm_rules,
    side,
)
from diffdepth_jax.typing import Features
from diffdepth_jax.weights.rules import Derived, Row, Rules, Skip

# Kernel size of the relative position encoding -> heads that use it. All published models use these
# eight heads in every stage.
POSITION_WINDOWS = {3: 2, 5: 3, 7: 3}
NUM_HEADS = sum(POSITION_WINDOWS.values())


@dataclass(frozen=True)
class Config:
    """An MPViT encoder.

    Attributes:
        embed_dims: channels inside each stage; a stage outputs as many as the next stage has.
        num_layers: transformer layers per path, by stage.
        num_paths: transformer paths, by stage.
        mlp_ratios: ratio of hidden to outer channels of the feed-forward part, by stage.
        drop_path_rate: rate of the last layer; rates increase linearly from 0.
        stem_stride: stride of both stem convolutions. DiffusionDepth uses 1 and a first stage that
            downsamples: features at strides 2, 4, 8, 16. The paper uses 2 and a first stage that
            does not: 4, 8, 16, 32. Weights do not distinguish the two.
    """

    name: Literal["mpvit"] = "mpvit"
    embed_dims: tuple[int, ...] = (64, 128, 216, 288)
    num_layers: tuple[int, ...] = (1, 3, 6, 3)
    num_paths: tuple[int, ...] = (2, 3, 3, 3)
    mlp_ratios: tuple[float, ...] = (4.0, 4.0, 4.0, 4.0)
    drop_path_rate: float = 0.2
    stem_stride: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        per_stage = (self.embed_dims, self.num_layers, self.num_paths, self.mlp_ratios)
        if not self.embed_dims or len({len(values) for values in per_stage}) > 1:
            raise ValueError(
                "embed_dims, num_layers, num_paths and mlp_ratios must have one entry per stage: "
                f"{self}"
            )
        if min(*self.num_layers, *self.num_paths) < 1:
            raise ValueError(f"num_layers and num_paths must be positive: {self}")
        for channels in self.embed_dims:
            if channels < 1 or channels % NUM_HEADS:
                raise ValueError(f"embed_dims {self.embed_dims} must be multiples of {NUM_HEADS}")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate is {self.drop_path_rate}; it must be in [0, 1)")

    @property
    def channels(self) -> tuple[int, ...]:
        return (*self.embed_dims[1:], self.embed_dims[-1])

    @property
    def reductions(self) -> tuple[int, ...]:
        first = 2 if self.stem_stride == 1 else 4
        return tuple(first * 2**stage for stage in range(len(self.embed_dims)))


# Drop-path rates as in DiffusionDepth's copy of the model.
VARIANTS = {
    "tiny": Config(
        embed_dims=(64, 96, 176, 216),
        num_layers=(1, 2, 4, 1),
        mlp_ratios=(2.0, 2.0, 2.0, 2.0),
        drop_path_rate=0.0,
    ),
    "xsmall": Config(embed_dims=(64, 128, 192, 256), num_layers=(1, 2, 4, 1), drop_path_rate=0.0),
    "small": Config(),
    "base": Config(embed_dims=(128, 224, 368, 480), num_layers=(1, 3, 8, 3), drop_path_rate=0.4),
}


class Encoder(nn.Module):
    """Image to features at the config's `reductions` (sizes rounded up)."""

    config: Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> Features:
        config, dtype = self.config, self.dtype
        features = image
        for layer, width in enumerate((config.embed_dims[0] // 2, config.embed_dims[0])):
            features = ConvNorm(width, 3, config.stem_stride, dtype=dtype, name=f"stem{layer}")(
                features, train
            )
        rates = drop_path_rates(config.drop_path_rate, config.num_layers)
        outputs = []
        for stage, width in enumerate(config.embed_dims):
            embedded = []
            for path in range(config.num_paths[stage]):
                halves = path == 0 and (stage > 0 or config.stem_stride == 1)
                features = PatchEmbed(
                    width, 2 if halves else 1, dtype, name=f"stage{stage}_patch{path}"
                )(features, train)
                embedded.append(features)
            joined = [Local(width, dtype, name=f"stage{stage}_local")(embedded[0], train)]
            for path, tokens in enumerate(embedded):
                joined.append(
                    Path(
                        rates[stage],
                        int(config.mlp_ratios[stage] * width),
                        dtype,
                        name=f"stage{stage}_path{path}",
                    )(tokens, train)
                )
            features = ConvNorm(
                config.channels[stage], 1, dtype=dtype, name=f"stage{stage}_aggregate"
            )(jnp.concatenate(joined, axis=-1), train)
            outputs.append(features)
        return tuple(outputs)


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and optionally Hardswish."""

    features: int
    kernel_size: int
    stride: int = 1
    activate: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w i"], train: bool) -> Float[Array, "b h2 w2 o"]:
        outputs = _conv(
            self.features, self.kernel_size, self.stride, dtype=self.dtype, name="conv"
        )(inputs)
        outputs = BatchNorm(train, name="norm")(outputs)
        return jax.nn.hard_swish(outputs) if self.activate else outputs


class PatchEmbed(nn.Module):
    """Depthwise 3x3 and pointwise convolution, BatchNorm, Hardswish."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c"]:
        outputs = _conv(
            self.features,
            3,
            self.stride,
            groups=self.features,
            dtype=self.dtype,
            name="depthwise",
        )(inputs)
        outputs = _conv(self.features, 1, dtype=self.dtype, name="pointwise")(outputs)
        return jax.nn.hard_swish(BatchNorm(train, name="norm")(outputs))


class Local(nn.Module):
    """The convolutional path: an inverted-residual block of expansion 1."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        hidden = ConvNorm(self.features, 1, dtype=self.dtype, name="conv1")(inputs, train)
        hidden = Conv(
            self.features,
            3,
            groups=self.features,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=normal((2.0 / 9) ** 0.5),
            name="depthwise",
        )(hidden)
        hidden = jax.nn.hard_swish(BatchNorm(train, name="norm")(hidden))
        hidden = ConvNorm(self.features, 1, activate=False, dtype=self.dtype, name="conv2")(
            hidden, train
        )
        return inputs + hidden


class Path(nn.Module):
    """Transformer layers that share their two position encodings."""

    drop_path_rates: tuple[float, ...]
    hidden_features: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        channels = tokens.shape[-1]
        position = Conv(channels, 3, groups=channels, dtype=self.dtype, name="position")
        relative_position = RelativePosition(self.dtype, name="relative_position")
        for layer, rate in enumerate(self.drop_path_rates):
            tokens += position(tokens)
            tokens = Layer(
                rate, self.hidden_features, relative_position, self.dtype, name=f"layer{layer}"
            )(tokens, train)
        return tokens


class RelativePosition(nn.Module):
    """Depthwise convolutions of the values, with larger kernels for later heads."""

    dtype: Any

    @nn.compact
    def __call__(self, values: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        outputs, start = [], 0
        for index, (size, heads) in enumerate(POSITION_WINDOWS.items()):
            width = heads * (values.shape[-1] // NUM_HEADS)
            conv = Conv(width, size, groups=width, dtype=self.dtype, name=f"conv{index}")
            outputs.append(conv(values[..., start : start + width]))
            start += width
        return jnp.concatenate(outputs, axis=-1)


class Layer(nn.Module):
    """Factorised attention and a feed-forward part, each with a pre-norm and a shortcut."""

    drop_path_rate: float
    hidden_features: int
    relative_position: Callable[[Array], Array]
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        drop_path = DropPath(self.drop_path_rate)
        attended = self._attend(LayerNorm(1e-6, name="norm1")(tokens))
        tokens += drop_path(attended, train)
        hidden = Mlp(self.hidden_features, self.dtype, name="mlp")(
            LayerNorm(1e-6, name="norm2")(tokens)
        )
        return tokens + drop_path(hidden, train)

    def _attend(self, tokens: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """scale * query (softmax(keys)^T values) + query * relative_position(values)."""
        batch, _, _, channels = tokens.shape
        width = channels // NUM_HEADS
        qkv = TransformerLinear(3 * channels, dtype=self.dtype, name="qkv")(tokens)
        query, key, value = jnp.split(qkv, 3, axis=-1)

        def heads(array: Array) -> Array:
            return array.reshape(batch, -1, NUM_HEADS, width)

        key = jax.nn.softmax(heads(key).astype(jnp.float32), axis=1).astype(self.dtype)
        context = jnp.einsum("bnhk,bnhv->bhkv", key, heads(value))
        attended = jnp.einsum("bnhk,bhkv->bnhv", heads(query), context).reshape(tokens.shape)
        attended = width**-0.5 * attended + query * self.relative_position(value)
        return TransformerLinear(channels, dtype=self.dtype, name="projection")(attended)


def _conv(features: int, kernel_size: int, stride: int = 1, **options: Any) -> Conv:
    """Convolution without bias, initialised as published: std sqrt(2 / (k * k * features))."""
    deviation = (2.0 / (kernel_size**2 * features)) ** 0.5
    return Conv(
        features,
        kernel_size,
        stride,
        use_bias=False,
        kernel_init=normal(deviation),
        **options,
    )


def rules(config: Config) -> Rules:
    """The conversion table for the published names.

    A path's layers share their position encodings, so a checkpoint holds each under several names:
    `P.cpe` and `P.MHCA_layers.L.cpe` for every layer L are one module, and so are `P.crpe`,
    `P.MHCA_layers.L.crpe` and `P.MHCA_layers.L.factoratt_crpe.crpe`. Files saved by PyTorch hold
    the same numbers under all of them; should they differ, PyTorch loads the names in order, so the
    last one, the last layer's, wins. It is the one read here, and exports derive the others from
    it.
    """
    rows: list[Row] = []
    for stage, depth in enumerate(config.num_layers):
        path, here = rf"mhca_stages\.{stage}\.mhca_blks\.(\d+)", rf"stage{stage}_path\1"
        layers = [rf"{path}\.MHCA_layers\.{layer}" for layer in range(depth)]
        last = f"MHCA_layers.{depth - 1}"
        position, relative = r"cpe\.proj", r"crpe\.conv_list\.(\d)"
        rows += _shared_rules(
            [rf"{place}\.{position}" for place in (path, *layers)],
            f"{here}/position",
            f"alias of {last}.cpe of the same path",
        )
        rows += _shared_rules(
            [rf"{place}\.{relative}" for place in (path, *layers)]
            + [rf"{layer}\.factoratt_crpe\.{relative}" for layer in layers],
            rf"{here}/relative_position/conv\2",
            f"alias of {last}.factoratt_crpe.crpe of the same path",
        )
    stem, patch = r"stem\.(\d)", r"patch_embed_stages\.(\d+)\.patch_embeds\.(\d+)\.patch_conv"
    layer = r"mhca_stages\.(\d+)\.mhca_blks\.(\d+)\.MHCA_layers\.(\d+)"
    in_layer, in_patch = r"stage\1_path\2/layer\3", r"stage\1_patch\2"
    local, aggregate = r"mhca_stages\.(\d+)\.InvRes", r"mhca_stages\.(\d+)\.aggregate"
    return (
        *rows,
        *conv_rules(rf"{stem}\.conv", r"stem\1/conv"),
        *batch_norm_rules(rf"{stem}\.bn", r"stem\1/norm"),
        *conv_rules(rf"{patch}\.dwconv", f"{in_patch}/depthwise"),
        *conv_rules(rf"{patch}\.pwconv", f"{in_patch}/pointwise"),
        *batch_norm_rules(rf"{patch}\.bn", f"{in_patch}/norm"),
        *norm_rules(rf"{layer}\.(norm\d)", rf"{in_layer}/\4"),
        *linear_rules(rf"{layer}\.factoratt_crpe\.qkv", f"{in_layer}/qkv"),
        *linear_rules(rf"{layer}\.factoratt_crpe\.proj", f"{in_layer}/projection"),
        *linear_rules(rf"{layer}\.mlp\.(fc\d)", rf"{in_layer}/mlp/\4"),
        *conv_rules(rf"{local}\.(conv\d)\.conv", r"stage\1_local/\2/conv"),
        *batch_norm_rules(rf"{local}\.(conv\d)\.bn", r"stage\1_local/\2/norm"),
        *conv_rules(rf"{local}\.dwconv", r"stage\1_local/depthwise"),
        *batch_norm_rules(rf"{local}\.norm", r"stage\1_local/norm"),
        *conv_rules(rf"{aggregate}\.conv", r"stage\1_aggregate/conv"),
        *batch_norm_rules(rf"{aggregate}\.bn", r"stage\1_aggregate/norm"),
    )


def _shared_rules(names: list[str], path: str, reason: str) -> Rules:
    """Rules for a convolution with several names, the last of which is read."""
    *aliases, last = (conv_rules(name, path) for name in names)
    derived = [
        Derived(row.pattern, reason, row.path, row.transform) for rows in aliases for row in rows
    ]
    return (*last, *derived)


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from names and shapes of weights; None for a different family.

    Weights determine neither the drop-path rate, taken from the published variant of these sizes if
    there is one, nor the stem's stride, assumed to be DiffusionDepth's.

    Raises:
        ValueError: if they are of this family, but an entry that determines the architecture is
            missing or has an unexpected shape.
    """
    if "mpvit" not in registry.matching("encoder", shapes):
        return None
    stages = range(count(shapes, r"patch_embed_stages\.(\d+)\."))
    embed_dims = [
        side(shapes, f"patch_embed_stages.{stage}.patch_embeds.0.patch_conv.dwconv.weight")
        for stage in stages
    ]
    layer = "mhca_stages.{}.mhca_blks.0.MHCA_layers.0.mlp.fc1.weight"
    config = Config(
        embed_dims=tuple(embed_dims),
        num_layers=tuple(
            count(shapes, rf"mhca_stages\.{stage}\.mhca_blks\.0\.MHCA_layers\.(\d+)\.")
            for stage in stages
        ),
        num_paths=tuple(
            count(shapes, rf"patch_embed_stages\.{stage}\.patch_embeds\.(\d+)\.")
            for stage in stages
        ),
        mlp_ratios=tuple(
            side(shapes, layer.format(stage)) / width
            for stage, width in zip(stages, embed_dims, strict=True)
        ),
    )
    for variant in VARIANTS.values():
        if replace(variant, drop_path_rate=config.drop_path_rate) == config:
            return variant
    return config


def _published_rules(config: Config) -> Rules:
    return (
        *rules(config),
        Skip(r"cls_head\..+", "the classifier, which is not part of the encoder"),
    )


LAYOUTS = {
    "published": Layout(infer, _published_rules, undetermined=("drop_path_rate", "stem_stride"))
}
