"""DINOv2's vision transformer (Oquab et al. 2023, arXiv:2304.07193), the encoder of Depth Anything.

All its maps have the stride of a patch. They are the outputs of selected blocks, the *taps*, passed
through the norm that follows the last block. Position embeddings belong to the pretraining grid of
37 x 37 patches and are resized (bicubic) for any other. Meta's code, and Depth Anything's, resizes
by a factor of (patches + 0.1) / 37, which shifts the samples slightly; Hugging Face's transformers
resizes to the exact size: see `position_offset`.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffdepth_jax import registry
from diffdepth_jax.models import transformer
from diffdepth_jax.models.encoders.encoder import OfPatches
from diffdepth_jax.models.layers import LayerNorm, transformer_init
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
from diffdepth_jax.ops.image import resize_bicubic, size_of
from diffdepth_jax.ops.remat import Remat
from diffdepth_jax.typing import Features
from diffdepth_jax.weights.rules import Constant, Rule, Rules

META_OFFSET, TRANSFORMERS_OFFSET = 0.1, 0.0
EPS = 1e-6  # of LayerNorm
_HEAD_FEATURES = 64  # channels per attention head in all published models


@dataclass(frozen=True)
class Config(OfPatches):
    """A DINOv2 encoder.

    Attributes:
        embed_dim: channels of the tokens.
        depth: number of blocks.
        num_heads: number of attention heads.
        taps: blocks, counted from 0, whose outputs are returned; must include the last block.
        gated: whether the feed-forward part is a SwiGLU.
        hidden_features: hidden channels of the feed-forward part.
        patch_size: side of a patch, in pixels.
        grid: side of the grid of position embeddings, in patches.
        position_offset: added to the number of patches when the resize factor of the grid is
            computed.
        drop_path_rate: rate of every block.
        remat: which parts of a block are recomputed in the backward pass, see `ops.remat`.
    """

    name: Literal["dinov2"] = "dinov2"
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    taps: tuple[int, ...] = (2, 5, 8, 11)
    gated: bool = False
    hidden_features: int = 1536
    patch_size: int = 14
    grid: int = 37
    position_offset: float = META_OFFSET
    drop_path_rate: float = 0.0
    remat: Remat = "none"

    def __post_init__(self) -> None:
        transformer.check_blocks(
            self.embed_dim, self.depth, self.num_heads, self.taps, self.drop_path_rate
        )
        for name in ("hidden_features", "patch_size", "grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.position_offset < 1:
            raise ValueError(f"position_offset is {self.position_offset}; it must be in [0, 1)")


def spread_taps(depth: int) -> tuple[int, ...]:
    """The blocks whose outputs Depth Anything V2 uses, for an encoder of this depth."""
    return (4, 11, 17, 23) if depth == 24 else transformer.quarters(depth)


def last_taps(depth: int) -> tuple[int, ...]:
    """The blocks whose outputs Depth Anything V1 uses."""
    return tuple(range(depth - 4, depth))


def _variant(embed_dim: int, depth: int, **fields: Any) -> Config:
    fields = {"hidden_features": 4 * embed_dim, **fields}
    heads, taps = embed_dim // _HEAD_FEATURES, spread_taps(depth)
    return Config(embed_dim=embed_dim, depth=depth, num_heads=heads, taps=taps, **fields)


VARIANTS = {
    "small": _variant(384, 12),
    "base": _variant(768, 12),
    "large": _variant(1024, 24),
    "giant": _variant(1536, 40, gated=True, hidden_features=4096),
}


class Encoder(nn.Module):
    """Image to normalised features, all at the patch stride (sizes rounded up).

    Images whose sides are not multiples of the patch are padded by repeating the last row and
    column.
    """

    config: Config
    dtype: Any = jnp.float32

    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> Features:
        """The maps of `with_class_tokens`."""
        return self.with_class_tokens(image, train)[0]

    @nn.compact
    def with_class_tokens(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> tuple[Features, tuple[Float[Array, "b c"], ...]]:
        """The normalised patch tokens, as a map, and class token of each tap."""
        config = self.config
        patches = transformer.embed_patches(image, config.embed_dim, config.patch_size, self.dtype)
        size = size_of(patches)
        tokens = transformer.add_class_token(self, patches)
        table = self.param("positions", transformer_init, (1 + config.grid**2, config.embed_dim))
        tokens += _fitted(table, size, config)[None]
        block_class = transformer.recomputed(transformer.Block, config.remat)
        norm = LayerNorm(EPS, name="norm")
        outputs = []
        for block in range(config.depth):
            tokens = block_class(
                config.num_heads,
                config.hidden_features,
                layer_scale=1e-5,
                eps=EPS,
                gated=config.gated,
                drop_path_rate=config.drop_path_rate,
                dtype=self.dtype,
                name=f"block{block}",
            )(tokens, train)
            if block in config.taps:
                outputs.append(norm(tokens))
        return transformer.to_maps(outputs, size)


def _fitted(
    table: Float[Array, "n c"], size: tuple[int, int], config: Config
) -> Float[Array, "m c"]:
    """The position embeddings of a grid of patches of this size."""
    grid, offset = config.grid, config.position_offset
    if size == (grid, grid):
        return table
    height, width = size
    scales = ((height + offset) / grid, (width + offset) / grid)
    return transformer.resize_positions(
        table, size, functools.partial(resize_bicubic, scales=scales)
    )


# ---- weights -------------------------------------------------------------------------------------

_MASK = "used only in masked-image pretraining"


def rules(config: Config) -> Rules:
    """The conversion table for Meta's names, which Depth Anything has below `pretrained.`."""
    block, here = r"blocks\.(\d+)", r"block\1"
    feed_forward = ("w12", "w3") if config.gated else ("fc1", "fc2")
    return (
        Rule("cls_token", "params/class_token", class_token),
        Rule("pos_embed", "params/positions", positions),
        Constant("mask_token", _MASK, _mask_token(config)),
        *conv_rules(r"patch_embed\.proj", "patch_embed"),
        *transformer.block_rules(block, here, feed_forward=feed_forward),
        Rule(rf"{block}\.ls(\d)\.gamma", rf"params/{here}/scale\2"),
        *norm_rules("norm", "norm"),
    )


def transformers_rules(config: Config) -> Rules:
    """The conversion table for Hugging Face's names: in files, and in modules since version 5."""
    block, here = r"encoder\.layer\.(\d+)", r"block\1"
    feed_forward = ("weights_in", "weights_out") if config.gated else ("fc1", "fc2")
    attention = rf"{block}\.attention"
    rows: list[Rule] = []
    for index, name in enumerate(("query", "key", "value")):
        names = rf"{attention}\.(?:attention\.{name}|{name[0]}_proj)"
        for row in linear_rules(names, f"{here}/attention/qkv"):
            rows.append(replace(row, part=(index, 3)))
    return (
        Rule(r"embeddings\.cls_token", "params/class_token", class_token),
        Rule(r"embeddings\.position_embeddings", "params/positions", positions),
        Constant(r"embeddings\.mask_token", _MASK, _mask_token(config)),
        *conv_rules(r"embeddings\.patch_embeddings\.projection", "patch_embed"),
        *norm_rules(rf"{block}\.(norm\d)", rf"{here}/\2"),
        *rows,
        *linear_rules(rf"{attention}\.(?:output\.dense|o_proj)", f"{here}/attention/projection"),
        Rule(rf"{block}\.layer_scale(\d)\.lambda1", rf"params/{here}/scale\2"),
        *linear_rules(rf"{block}\.mlp\.{feed_forward[0]}", f"{here}/mlp/fc1"),
        *linear_rules(rf"{block}\.mlp\.{feed_forward[1]}", f"{here}/mlp/fc2"),
        *norm_rules("layernorm", "norm"),
    )


def _mask_token(config: Config) -> Callable[[], np.ndarray]:
    return lambda: np.zeros((1, config.embed_dim), np.float32)


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from names and shapes of weights; None for a different family.

    Weights do not determine the taps; those of Depth Anything V2 are assumed, and heads with 64
    channels.

    Raises:
        ValueError: if they are of this family, but an entry that determines the architecture is
            missing.
    """
    if "dinov2" not in registry.matching("encoder", shapes):
        return None
    gated = "blocks.0.mlp.w12.weight" in shapes
    return _inferred(
        shapes,
        "patch_embed.proj.weight",
        "pos_embed",
        block=r"blocks\.(\d+)\.",
        last=r"mlp\.w3\.weight" if gated else r"mlp\.fc2\.weight",
        gated=gated,
    )


def infer_transformers(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """Like `infer`, for Hugging Face's names and with transformers' way of resizing."""
    if "encoder.layer.0.layer_scale1.lambda1" not in shapes:
        return None
    gated = "encoder.layer.0.mlp.weights_in.weight" in shapes
    found = _inferred(
        shapes,
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.position_embeddings",
        block=r"encoder\.layer\.(\d+)\.",
        last=r"mlp\.weights_out\.weight" if gated else r"mlp\.fc2\.weight",
        gated=gated,
    )
    return replace(found, position_offset=TRANSFORMERS_OFFSET)


def _inferred(
    shapes: Mapping[str, tuple[int, ...]],
    patches: str,
    positions: str,
    *,
    block: str,
    last: str,
    gated: bool,
) -> Config:
    """Infers the config; `last` names the last dense layer of a block's feed-forward part."""
    embed_dim = width(shapes, rf"{block}norm\d\.\w+")
    hidden_features = width(shapes, rf"{block}{last}", 1)
    if embed_dim is None or hidden_features is None:
        raise ValueError(f"the weights of the blocks have no norms or no {last!r}")
    depth = count(shapes, block)
    return Config(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=max(1, embed_dim // _HEAD_FEATURES),
        taps=spread_taps(depth),
        gated=gated,
        hidden_features=hidden_features,
        patch_size=side(shapes, patches, 2),
        grid=round((side(shapes, positions, 1) - 1) ** 0.5),
    )


_UNDETERMINED = ("num_heads", "taps", "position_offset", "drop_path_rate", "remat")
LAYOUTS = {
    "meta": Layout(infer, rules, _UNDETERMINED),
    "transformers": Layout(infer_transformers, transformers_rules, _UNDETERMINED),
}
