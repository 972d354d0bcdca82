"""Swin Transformer V2 (Liu et al. 2022, arXiv:2111.09883), as in timm and Microsoft's code.

Differences from `swin`:

- cosine attention (section 3.3): logits are the cosine similarity of queries and keys times a
  learnt factor of at most 100, and keys have no bias;
- the position bias is 16 sigmoid(MLP(log-spaced offset of key and query)) (section 3.4). It works
  for any window size, as offsets are normalised by the pretraining windows (`pretraining_windows`);
- post-norm (section 3.2): norms follow attention, the feed-forward part, and the linear map that
  merges neighbours. The norms in blocks are initialised to 0, so that each block starts as the
  identity.

The windows are those for a square image of `image_size`: a stage whose map fits into one window
uses a window of the map's size and no shift. Images of other sizes are padded as in `swin`.
Features are not normalised by default.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffdepth_jax.errors import WeightsError
from diffdepth_jax.models.encoders import swin
from diffdepth_jax.models.encoders.swin import (
    BLOCK,
    TIMM_BLOCK,
    classifier_constants,
    classifier_skips,
    from_windows,
    merge_neighbours,
    merge_rules,
    merges_first,
    relative_position_index,
    sizes_of_masks,
    structure,
    timm_rows,
    to_windows,
)
from diffdepth_jax.models.layers import DropPath, LayerNorm, Linear, Mlp, TransformerLinear
from diffdepth_jax.models.layers import transformer_init as init
from diffdepth_jax.models.tables import Layout, conv_rules, linear_rules, norm_rules
from diffdepth_jax.models.transformer import keyless_bias
from diffdepth_jax.ops.image import size_of
from diffdepth_jax.weights.rules import Rule, Rules, Skip, Transform, linear


@dataclass(frozen=True)
class Config(swin.Config):
    """A Swin Transformer V2 encoder.

    Attributes:
        window_size: side of the attention windows, in tokens, unless the map fits into one.
        pretraining_windows: for each stage, the window size that offsets are normalised by; 0 for
            the stage's own window. Empty to use every stage's own window.
        image_size: side in pixels of the square images that the windows are for.
    """

    name: Literal["swin2"] = "swin2"  # type: ignore[assignment]
    window_size: int = 16
    image_size: int = 256
    output_norms: bool = False
    pretraining_windows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        windows = self.pretraining_windows
        if windows and len(windows) != len(self.depths):
            raise ValueError(
                f"pretraining_windows {windows} must be empty or have one entry for each of the "
                f"{len(self.depths)} stages"
            )
        if any(window < 0 or window == 1 for window in windows):
            raise ValueError(
                f"pretraining_windows {windows} must be at least 2, or 0 for the stage's own window"
            )

    def largest_offset(self, stage: int) -> int:
        """The offset in tokens that a stage's position bias maps to 8."""
        pretraining = self.pretraining_windows[stage] if self.pretraining_windows else 0
        return max((pretraining or self.windows(stage)[0]) - 1, 1)


def _variant(
    size: str, window_size: int, image_size: int, pretraining_windows: tuple[int, ...] = ()
) -> Config:
    """A published variant: a model size with these window and image sizes."""
    embed_dim, depths, num_heads = _SIZES[size]
    return Config(
        embed_dim=embed_dim,
        depths=depths,
        num_heads=num_heads,
        window_size=window_size,
        image_size=image_size,
        pretraining_windows=pretraining_windows,
    )


_SIZES = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}

_WINDOW12 = (12, 12, 12, 6)  # for images of 192 pixels, whose coarsest map is 6 tokens wide

VARIANTS = {
    "tiny_window8": _variant("tiny", 8, 256),
    "tiny_window16": _variant("tiny", 16, 256),
    "small_window8": _variant("small", 8, 256),
    "small_window16": _variant("small", 16, 256),
    "base_window8": _variant("base", 8, 256),
    "base_window16": _variant("base", 16, 256),
    "base_window12": _variant("base", 12, 192),
    "large_window12": _variant("large", 12, 192),
    "base_window12to16": _variant("base", 16, 256, _WINDOW12),
    "large_window12to16": _variant("large", 16, 256, _WINDOW12),
    "base_window12to24": _variant("base", 24, 384, _WINDOW12),
    "large_window12to24": _variant("large", 24, 384, _WINDOW12),
}
# The variants that MiDaS uses, by size.
_MIDAS = ("tiny_window16", "base_window12to24", "large_window12to24")


class Encoder(swin.Encoder):
    """Image to features at strides 4, 8, 16, 32 (sizes rounded up)."""

    config: Config

    def _classes(self) -> tuple[type[nn.Module], type[nn.Module]]:
        return Block, PatchMerging

    def _block_options(self, stage: int) -> dict[str, Any]:
        return {"largest_offset": self.config.largest_offset(stage)}


class Block(nn.Module):
    """Window attention and a feed-forward part, each with a post-norm and a shortcut."""

    num_heads: int
    window_size: int
    shift: int
    hidden_features: int
    drop_path_rate: float
    largest_offset: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        drop_path = DropPath(self.drop_path_rate)
        attention = WindowAttention(
            self.num_heads,
            self.window_size,
            self.shift,
            self.largest_offset,
            self.dtype,
            name="attention",
        )
        mlp = Mlp(self.hidden_features, self.dtype, name="mlp")
        tokens += drop_path(_norm("norm1")(attention(tokens)), train)
        return tokens + drop_path(_norm("norm2")(mlp(tokens)), train)


def _norm(name: str) -> LayerNorm:
    return LayerNorm(scale_init=nn.initializers.zeros_init(), name=name)


class WindowAttention(nn.Module):
    """Cosine attention within windows of the map rolled up and left by `shift` tokens."""

    num_heads: int
    window_size: int
    shift: int
    largest_offset: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = tokens.shape[-1]
        windows, apart = to_windows(tokens, self.window_size, self.shift)
        qkv = TransformerLinear(3 * channels, use_bias=False, dtype=self.dtype, name="qkv")(windows)
        qkv += keyless_bias(self, channels)[None, None, None].astype(self.dtype)
        query, key, value = jnp.moveaxis(
            qkv.reshape(*windows.shape[:3], 3, self.num_heads, -1), 3, 0
        )
        cosines = jnp.einsum(
            "bwqhd,bwkhd->bwhqk",
            _direction(query),
            _direction(key),
            preferred_element_type=jnp.float32,
        )
        scale = self.param(
            "logit_scale", nn.initializers.constant(math.log(10.0)), (self.num_heads,)
        )
        scale = jnp.exp(jnp.minimum(scale, math.log(100.0)))
        bias = PositionBias(self.num_heads, self.window_size, self.largest_offset, name="position")
        logits = cosines * scale[None, None, :, None, None] + bias()[None, None]
        if apart is not None:
            logits -= jnp.where(apart, 100.0, 0.0)[None, :, None]
        weights = jax.nn.softmax(logits).astype(self.dtype)
        windows = jnp.einsum("bwhqk,bwkhd->bwqhd", weights, value).reshape(windows.shape)
        windows = TransformerLinear(channels, dtype=self.dtype, name="projection")(windows)
        return from_windows(windows, size_of(tokens), self.shift)


class PositionBias(nn.Module):
    """Bias for each query and key of a window, from the offset between them; float32."""

    num_heads: int
    window_size: int
    largest_offset: int

    @nn.compact
    def __call__(self) -> Float[Array, "heads n n"]:
        offsets = log_spaced_offsets(self.window_size, self.largest_offset)
        hidden = jax.nn.relu(Linear(512, kernel_init=init, name="fc1")(jnp.asarray(offsets)))
        table = Linear(self.num_heads, use_bias=False, kernel_init=init, name="fc2")(hidden)
        table = 16.0 * jax.nn.sigmoid(table)
        return jnp.moveaxis(table[relative_position_index(self.window_size)], 2, 0)


def log_spaced_offsets(window_size: int, largest_offset: int) -> Float[np.ndarray, "n 2"]:
    """Offsets (dy, dx) = query - key in the order of `swin.relative_position_index`, log-spaced.

    Offsets are scaled so that `largest_offset` becomes 8, then mapped to sign(o) log2(1 + |o|) /
    log2(8) (equation 4 of the paper, and its code).
    """
    offsets = np.arange(1 - window_size, window_size) * (8.0 / largest_offset)
    offsets = np.sign(offsets) * np.log2(1.0 + np.abs(offsets)) / np.log2(8.0)
    grid = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), -1)
    return grid.reshape(-1, 2).astype(np.float32)


class PatchMerging(nn.Module):
    """Merges 2x2 tokens into one with twice the channels, normalised afterwards."""

    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 2*c"]:
        features = 2 * tokens.shape[-1]
        merged = TransformerLinear(features, use_bias=False, dtype=self.dtype, name="reduction")(
            merge_neighbours(tokens)
        )
        return LayerNorm(name="norm")(merged)


def _direction(vectors: Array) -> Array:
    """L2-normalises vectors along the last axis; the divisor is at least 1e-12."""
    values = vectors.astype(jnp.float32)
    squared = jnp.square(values).sum(-1, keepdims=True)
    return (values * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))).astype(vectors.dtype)


_BY_HEAD = Transform(lambda scale: scale.reshape(-1), lambda scale: scale.reshape(-1, 1, 1))


def rules(config: Config) -> Rules:
    """The conversion table for the names of microsoft/Swin-Transformer, timm before 0.9, and MiDaS.

    Output norms, if any, have the names used in `swin`.
    """
    return (
        *_weight_rules(config, first_merge=0),
        Skip(
            rf"{TIMM_BLOCK}\.attn\.relative_(position_index|coords_table)",
            "computed from the window size",
        ),
        *classifier_constants(config),
        *norm_rules(r"norm(\d+)", r"norm\1"),
    )


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from weights named as in `rules`; None for a different family.

    The shapes do not depend on the window and image sizes, but the shift masks determine both. If
    the masks are not stored, the windows are taken from the published variant of this model size.
    So are `pretraining_windows`, which no weights determine; they are empty for other configs.

    Raises:
        ValueError: if an entry that determines the architecture is missing or has an unexpected
            shape.
        WeightsError: if shift masks are missing from weights of an unpublished size.
    """
    config = None if merges_first(shapes) else _infer(shapes, *_TIMM_NAMES)
    if config is None:
        return None
    config = replace(config, output_norms="norm0.weight" in shapes)
    sizes = sizes_of_masks(shapes, config.patch_size)
    variants = [VARIANTS[name] for name in (VARIANTS if sizes else _MIDAS)]
    if sizes is not None:
        variants = [each for each in variants if (each.window_size, each.image_size) == sizes]
    if (found := _matching_variant(config, variants)) is not None:
        return found
    if sizes is not None:
        return replace(config, window_size=sizes[0], image_size=sizes[1])
    raise WeightsError(
        "cannot infer the window size: the weights lack the shift masks "
        "(layers.0.blocks.1.attn_mask and others), and no published Swin V2 has embed_dim "
        f"{config.embed_dim} and depths {config.depths}"
    )


def _matching_variant(config: Config, variants: Iterable[Config]) -> Config | None:
    """The config with the windows of the first variant that is otherwise equal."""
    undetermined = ("window_size", "image_size", "pretraining_windows")
    default = {field: getattr(config, field) for field in undetermined}
    for variant in variants:
        variant = replace(variant, output_norms=config.output_norms)
        if replace(variant, **default) == config:
            return variant
    return None


def _weight_rules(config: Config, first_merge: int) -> Rules:
    attention = rf"{TIMM_BLOCK}\.attn"
    return (
        *timm_rows(config, first_merge),
        *linear_rules(rf"{attention}\.qkv", f"{BLOCK}/attention/qkv"),
        Rule(rf"{attention}\.q_bias", f"params/{BLOCK}/attention/qkv_bias", part=(0, 2)),
        Rule(rf"{attention}\.v_bias", f"params/{BLOCK}/attention/qkv_bias", part=(1, 2)),
        *_position_rules(attention, "cpb_mlp"),
    )


def _position_rules(attention: str, network: str) -> Rules:
    """Rules for the attention's logit scale and position bias."""
    return (
        Rule(rf"{attention}\.logit_scale", f"params/{BLOCK}/attention/logit_scale", _BY_HEAD),
        *linear_rules(rf"{attention}\.{network}\.0", f"{BLOCK}/attention/position/fc1"),
        *linear_rules(rf"{attention}\.{network}\.2", f"{BLOCK}/attention/position/fc2"),
    )


# ---- other sources of weights --------------------------------------------------------------------


def _timm_rules(config: Config) -> Rules:
    """timm since 0.9: a stage merges at its beginning."""
    return (*_weight_rules(config, first_merge=1), *classifier_skips())


def transformers_rules(config: Config) -> Rules:
    """Hugging Face's transformers, the weights of `Swinv2Backbone`."""
    block = r"encoder\.layers\.(\d+)\.blocks\.(\d+)"
    attention = rf"{block}\.attention\.self"
    kernel, bias = (f"params/{BLOCK}/attention/{name}" for name in ("qkv/kernel", "qkv_bias"))
    return (
        *conv_rules(r"embeddings\.patch_embeddings\.projection", "patch_embed"),
        *norm_rules(r"embeddings\.norm", "patch_norm"),
        Rule(rf"{attention}\.query\.weight", kernel, linear, (0, 3)),
        Rule(rf"{attention}\.key\.weight", kernel, linear, (1, 3)),
        Rule(rf"{attention}\.value\.weight", kernel, linear, (2, 3)),
        Rule(rf"{attention}\.query\.bias", bias, part=(0, 2)),
        Rule(rf"{attention}\.value\.bias", bias, part=(1, 2)),
        *_position_rules(attention, "continuous_position_bias_mlp"),
        *linear_rules(rf"{block}\.attention\.output\.dense", f"{BLOCK}/attention/projection"),
        *norm_rules(rf"{block}\.layernorm_before", f"{BLOCK}/norm1"),
        *norm_rules(rf"{block}\.layernorm_after", f"{BLOCK}/norm2"),
        *linear_rules(rf"{block}\.intermediate\.dense", f"{BLOCK}/mlp/fc1"),
        *linear_rules(rf"{block}\.output\.dense", f"{BLOCK}/mlp/fc2"),
        *merge_rules(config, r"encoder\.layers", 0),
    )


def infer_transformers(
    shapes: Mapping[str, tuple[int, ...]], described: Any = None
) -> Config | None:
    """Infers the config from weights named as in `transformers_rules`; None for others.

    Args:
        shapes: shapes of the weights by name.
        described: the content of a `config.json`. If empty, the windows are those of MiDaS's
            encoder of this size, or the default.

    Raises:
        ValueError: if an entry that determines the architecture is missing or has an unexpected
            shape.
    """
    config = _infer(
        shapes,
        "embeddings.patch_embeddings.projection",
        "encoder.layers",
        "attention.self.logit_scale",
        "intermediate.dense",
    )
    if config is None:
        return None
    if not described:
        return _matching_variant(config, map(VARIANTS.__getitem__, _MIDAS)) or config
    described.require(
        model_type=("swinv2",),
        hidden_act=("gelu",),
        layer_norm_eps=(1e-5,),
        qkv_bias=(True,),
        use_absolute_embeddings=(False,),
    )
    windows = described.integers("pretrained_window_sizes", (0,))
    return replace(
        config,
        window_size=described.value("window_size", int, 7),
        image_size=described.value("image_size", int, 224),
        pretraining_windows=windows if any(windows) else (),
    )


def described(config: Config) -> dict[str, Any]:
    """The content of transformers' `config.json` for the encoder; all stages are outputs."""
    stages = range(1, len(config.depths) + 1)
    return {
        "architectures": ["Swinv2Model"],
        "model_type": "swinv2",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window_size,
        "pretrained_window_sizes": list(config.pretraining_windows or (0,) * len(config.depths)),
        "mlp_ratio": config.mlp_ratio,
        "drop_path_rate": config.drop_path_rate,
        "out_features": [f"stage{stage}" for stage in stages],
        "out_indices": list(stages),
    }


def _classifier_rules(config: Config) -> Rules:
    """transformers' `Swinv2Model`, including entries that its backbone lacks."""
    attention = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.self"
    return (
        *transformers_rules(config),
        Skip(r"embeddings\.mask_token", "used only in masked-image pretraining"),
        Skip(
            rf"{attention}\.relative_(position_index|coords_table)", "computed from the window size"
        ),
        Skip(r"layernorm\..+", "the norm before the classifier"),
        swin.NO_NORMS,
    )


def _infer_timm(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    return _infer(shapes, *_TIMM_NAMES) if merges_first(shapes) else None


_TIMM_NAMES = "patch_embed.proj", "layers", "attn.logit_scale", "mlp.fc1"


def _infer(
    shapes: Mapping[str, tuple[int, ...]], patch_embed: str, stages: str, scale: str, hidden: str
) -> Config | None:
    """`infer` for a layout with these names; the last two are relative to a block's name."""
    found = structure(shapes, patch_embed, stages, (scale, 0), hidden)
    return None if found is None else Config(**found)


_UNDETERMINED = (*swin.UNDETERMINED, "window_size", "pretraining_windows")
LAYOUTS = {
    "microsoft": Layout(infer, rules, _UNDETERMINED),
    "timm": Layout(_infer_timm, _timm_rules, _UNDETERMINED),
    "transformers": Layout(infer_transformers, _classifier_rules, _UNDETERMINED),
}
