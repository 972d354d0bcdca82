"""The vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) as used by DPT.

Patches become tokens, a class token and position embeddings are added, and blocks follow. The
feature maps are the output tokens of some of the blocks, without a classifier's final norm. For
grids other than pretraining's, position embeddings are resized bilinearly (Ranftl et al. 2021,
arXiv:2103.13413, section 3). Names and epsilon follow timm.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffdepth_jax import registry
from diffdepth_jax.models import transformer
from diffdepth_jax.models.encoders.encoder import ForImageSize, OfPatches
from diffdepth_jax.models.layers import drop_path_rates, transformer_init
from diffdepth_jax.models.tables import (
    Layout,
    class_token,
    conv_rules,
    count,
    linear_rules,
    norm_rules,
    positions,
    side,
    width,
)
from diffdepth_jax.ops.image import resize_bilinear, size_of
from diffdepth_jax.ops.remat import Remat
from diffdepth_jax.typing import Features
from diffdepth_jax.weights.rules import Constant, Rule, Rules, Skip


def check(config: Any) -> None:
    """Rejects configs that no transformer can have.

    Raises:
        ValueError: names the invalid value and the reason.
    """
    transformer.check_blocks(
        config.embed_dim, config.depth, config.num_heads, config.taps, config.drop_path_rate
    )
    if min(config.hidden_features, config.patch_size, config.grid) < 1:
        raise ValueError(
            f"hidden_features {config.hidden_features}, patch_size {config.patch_size} and grid "
            f"{config.grid} must be positive"
        )


@dataclass(frozen=True)
class Config(ForImageSize, OfPatches):
    """A vision transformer encoder.

    Attributes:
        embed_dim: channels of the tokens.
        depth: number of blocks.
        num_heads: number of attention heads.
        hidden_features: hidden channels of the feed-forward part.
        patch_size: side of a token in pixels.
        grid: side of the square token grid of pretraining, which the position embeddings belong to.
        taps: blocks, counted from 0, whose output tokens are the features.
        layer_norm_eps: epsilon of the layer norms.
        drop_path_rate: rate of the last block; rates increase linearly from 0.
        remat: which parts of a block are recomputed in the backward pass, see `ops.remat`.
    """

    name: Literal["vit"] = "vit"
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    hidden_features: int = 3072
    patch_size: int = 16
    grid: int = 24
    taps: tuple[int, ...] = (2, 5, 8, 11)
    layer_norm_eps: float = 1e-6
    drop_path_rate: float = 0.0
    remat: Remat = "none"

    def __post_init__(self) -> None:
        check(self)

    @property
    def image_size(self) -> int:
        return self.grid * self.patch_size


_BASE = Config()
_LARGE = Config(embed_dim=1024, depth=24, num_heads=16, hidden_features=4096, taps=(5, 11, 17, 23))

VARIANTS = {
    "base": replace(_BASE, grid=14),
    "large": replace(_LARGE, grid=14),
    "base_384": _BASE,
    "large_384": _LARGE,
}


class Encoder(nn.Module):
    """Image to the output tokens of each tapped block as maps, all at the patch stride.

    Images whose sides are not multiples of the patch are padded by repeating the last row and
    column.
    """

    config: Config
    dtype: Any = jnp.float32

    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> Features:
        """Only the features of `with_class_tokens`."""
        return self.with_class_tokens(image, train)[0]

    @nn.compact
    def with_class_tokens(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> tuple[Features, tuple[Float[Array, "b c"], ...]]:
        """The features, and the class token after each tapped block."""
        config = self.config
        patches = transformer.embed_patches(image, config.embed_dim, config.patch_size, self.dtype)
        return transform(self, config, patches, train)


def transform(
    module: nn.Module, config: Any, patches: Float[Array, "b h w c"], train: bool
) -> tuple[Features, tuple[Float[Array, "b c"], ...]]:
    """Embedded patches to features and class tokens. For use in a compact method only."""
    size = size_of(patches)
    table = module.param("positions", transformer_init, (1 + config.grid**2, config.embed_dim))
    tokens = transformer.add_class_token(module, patches)
    tokens += transformer.resize_positions(table, size, _bilinear)[None]
    block_class = transformer.recomputed(transformer.Block, config.remat)
    (rates,) = drop_path_rates(config.drop_path_rate, (config.depth,))
    outputs = []
    for index, rate in enumerate(rates):
        tokens = block_class(
            num_heads=config.num_heads,
            hidden_features=config.hidden_features,
            eps=config.layer_norm_eps,
            drop_path_rate=rate,
            dtype=module.dtype,
            name=f"block{index}",
        )(tokens, train)
        if index in config.taps:
            outputs.append(tokens)
    return transformer.to_maps(outputs, size)


def _bilinear(grid: Array, size: tuple[int, int]) -> Array:
    return resize_bilinear(grid, size, align_corners=False)


def rules(config: Config) -> Rules:
    """The conversion table for timm's names, including its classifier's."""
    return (*conv_rules(r"patch_embed\.proj", "patch_embed"), *transformer_rules(config))


def transformer_rules(config: Any) -> Rules:
    """The rules for everything after the patch embedding."""
    return (
        Rule("cls_token", "params/class_token", class_token),
        Rule("pos_embed", "params/positions", positions),
        *transformer.block_rules(r"blocks\.(\d+)", r"block\1"),
        *unused_norm_rules("norm", config.embed_dim),
        *classifier_rules(config.embed_dim),
    )


def unused_norm_rules(name: str, channels: int) -> tuple[Constant, ...]:
    """The rules for a norm that only a classifier applies."""
    reason = "the classifier's norm, which the features precede"
    return (
        Constant(rf"{name}\.weight", reason, lambda: np.ones(channels, np.float32)),
        Constant(rf"{name}\.bias", reason, lambda: np.zeros(channels, np.float32)),
    )


def classifier_rules(channels: int, classes: int = 1000) -> tuple[Constant, ...]:
    """The rules for timm's classifier, by default with ImageNet's classes."""
    reason = "the classifier, which depth prediction does not need"
    return (
        Constant(r"head\.weight", reason, lambda: np.zeros((classes, channels), np.float32)),
        Constant(r"head\.bias", reason, lambda: np.zeros(classes, np.float32)),
    )


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from names and shapes of weights; None for a different family.

    Weights determine neither the heads (64 channels each are assumed) nor the taps (the last block
    of each quarter).

    Raises:
        ValueError: if they are of this family, but describe an impossible network.
    """
    if "vit" not in registry.matching("encoder", shapes):
        return None
    depth = count(shapes, r"blocks\.(\d+)\.")
    return Config(
        **inferred(shapes, r"blocks\.\d+\.norm\d", r"blocks\.\d+\.mlp\.fc1", "pos_embed"),
        depth=depth,
        patch_size=side(shapes, "patch_embed.proj.weight", 3),
        taps=transformer.quarters(depth),
    )


def inferred(
    shapes: Mapping[str, tuple[int, ...]], norm: str, hidden: str, table: str
) -> dict[str, Any]:
    """The fields of a transformer that can be inferred from its widths.

    Args:
        norm, hidden: name patterns of the blocks' norms and hidden layers.
        table: name of the position embeddings.
    """
    embed_dim = width(shapes, rf"{norm}\.(weight|bias)") or 0
    return {
        "embed_dim": embed_dim,
        "num_heads": max(embed_dim // 64, 1),
        "grid": math.isqrt(side(shapes, table, 1) - 1),
        "hidden_features": width(shapes, rf"{hidden}\.(weight|bias)") or 0,
    }


# ---- Hugging Face's transformers -----------------------------------------------------------------


EPS_OF_TRANSFORMERS = 1e-12  # LayerNorm epsilon unless `config.json` sets it


TRANSFORMERS_BLOCK = r"(?:encoder\.layer|layers)\.(\d+)"


def transformers_block_rules(block: str, path: str, qkv_bias: bool = True) -> Rules:
    """Rules for a `transformer.Block` without its scales, for transformers' ViT-style names.

    Both names in files and names in modules since version 5 match.

    Args:
        block, path: pattern of the block's name, and template of its path here.
        qkv_bias: whether the biases of queries, keys and values form one leaf too.
    """
    attention, rows = rf"{block}\.attention", []
    for index, name in enumerate(("query", "key", "value")):
        names = rf"{attention}\.(?:attention\.{name}|{name[0]}_proj)"
        found = linear_rules(names, f"{path}/attention/qkv")
        for row in found if qkv_bias else found[:1]:
            rows.append(replace(row, part=(index, 3)))
    return (
        *norm_rules(rf"{block}\.layernorm_before", f"{path}/norm1"),
        *norm_rules(rf"{block}\.layernorm_after", f"{path}/norm2"),
        *rows,
        *linear_rules(rf"{attention}\.(?:output\.dense|o_proj)", f"{path}/attention/projection"),
        *linear_rules(rf"{block}\.(?:intermediate\.dense|mlp\.fc1)", f"{path}/mlp/fc1"),
        *linear_rules(rf"{block}\.(?:output\.dense|mlp\.fc2)", f"{path}/mlp/fc2"),
    )


def transformers_rules(config: Config) -> Rules:
    """The conversion table for transformers' names: in files, and in modules since version 5."""
    return (
        *conv_rules(r"embeddings\.patch_embeddings\.projection", "patch_embed"),
        *transformers_transformer_rules(config),
    )


def transformers_transformer_rules(config: Any) -> Rules:
    """The rules for everything after the patch embedding."""
    return (
        Rule(r"embeddings\.cls_token", "params/class_token", class_token),
        Rule(r"embeddings\.position_embeddings", "params/positions", positions),
        *transformers_block_rules(TRANSFORMERS_BLOCK, r"block\1"),
        *unused_norm_rules("layernorm", config.embed_dim),
        Skip(r"pooler\..+", "part of a classifier"),
        Skip(r"embeddings\.mask_token", "used only in masked-image pretraining"),
    )


def inferred_transformers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The fields of a transformer inferred from names and widths; None if it is not one."""
    table, block = "embeddings.position_embeddings", TRANSFORMERS_BLOCK
    depth = count(shapes, rf"{block}\.layernorm_before\.")
    if table not in shapes or not depth:
        return None
    hidden = rf"{block}\.(intermediate\.dense|mlp\.fc1)"
    found = inferred(shapes, rf"{block}\.layernorm_(before|after)", hidden, table)
    return {**found, "depth": depth}


def infer_transformers(
    shapes: Mapping[str, tuple[int, ...]], described: Any = None
) -> Config | None:
    """Infers the config from weights named as in `transformers_rules`; None for others.

    Args:
        shapes: shapes of the weights by name.
        described: the content of a `config.json`. If empty, heads and taps are as in `infer`.

    Raises:
        ValueError: if they are of this family, but describe an impossible network.
    """
    embedding = "embeddings.patch_embeddings.projection.weight"
    found = inferred_transformers(shapes)
    if found is None or embedding not in shapes:
        return None
    depth = found["depth"]
    config = Config(
        **found,
        patch_size=side(shapes, embedding, 3),
        taps=transformer.quarters(depth),
        layer_norm_eps=EPS_OF_TRANSFORMERS,
    )
    if not described:
        return config
    described.require(hidden_act=("gelu",), qkv_bias=(True,))
    return replace(
        config,
        num_heads=described.value("num_attention_heads", int, 12),
        taps=described.integers("backbone_out_indices", (2, 5, 8, 11)),
        layer_norm_eps=described.value("layer_norm_eps", float, EPS_OF_TRANSFORMERS),
    )


def described(config: Any) -> dict[str, Any]:
    """The content of transformers' `config.json` for the encoder."""
    return {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_features,
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": config.grid * config.patch_size,
        "patch_size": config.patch_size,
        "qkv_bias": True,
        "backbone_out_indices": list(config.taps),
    }


_UNDETERMINED = ("num_heads", "taps", "layer_norm_eps", "drop_path_rate", "remat")
LAYOUTS = {
    "timm": Layout(infer, rules, _UNDETERMINED),
    "transformers": Layout(infer_transformers, transformers_rules, _UNDETERMINED),
}
