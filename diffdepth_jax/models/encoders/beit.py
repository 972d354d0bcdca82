"""BEiT's vision transformer (Bao et al. 2021, arXiv:2106.08254) as MiDaS 3.1 uses it.

There are no position embeddings. Instead, each block adds a bias to its attention logits that
depends on the offset between two tokens. The biases are stored in a table for the pretraining grid;
for any other grid, the table is resized bilinearly (Birkl et al. 2023, arXiv:2307.14460, section
3.3). Three more rows hold the biases for pairs with the class token. Keys have no bias, and every
branch has a LayerScale.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffdepth_jax import registry
from diffdepth_jax.models import transformer
from diffdepth_jax.models.encoders import vit
from diffdepth_jax.models.encoders.encoder import ForImageSize, OfPatches
from diffdepth_jax.models.layers import drop_path_rates, transformer_init
from diffdepth_jax.models.tables import (
    Layout,
    class_token,
    conv_rules,
    count,
    side,
    width,
)
from diffdepth_jax.ops.image import resize_bilinear, size_of
from diffdepth_jax.ops.remat import Remat
from diffdepth_jax.typing import Features
from diffdepth_jax.weights.rules import Derived, Rule, Rules, Skip, Transform


@dataclass(frozen=True)
class Config(ForImageSize, OfPatches):
    """A BEiT encoder.

    Attributes:
        embed_dim: channels of the tokens.
        depth: number of blocks.
        num_heads: number of attention heads.
        hidden_features: hidden channels of the feed-forward part.
        patch_size: side of a token in pixels.
        grid: side of the square token grid of pretraining, which the position biases belong to.
        taps: blocks, counted from 0, whose output tokens are the features.
        layer_norm_eps: epsilon of the layer norms.
        drop_path_rate: rate of the last block; rates increase linearly from 0.
        remat: which parts of a block are recomputed in the backward pass, see `ops.remat`.
    """

    name: Literal["beit"] = "beit"
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
        vit.check(self)

    @property
    def image_size(self) -> int:
        return self.grid * self.patch_size


_LARGE = Config(embed_dim=1024, depth=24, num_heads=16, hidden_features=4096, taps=(5, 11, 17, 23))

VARIANTS = {
    "base_384": Config(),
    "large_384": _LARGE,
    "large_512": replace(_LARGE, grid=32),
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
        size = size_of(patches)
        tokens = transformer.add_class_token(self, patches)
        block_class = transformer.recomputed(Block, config.remat)
        (rates,) = drop_path_rates(config.drop_path_rate, (config.depth,))
        outputs = []
        for index, rate in enumerate(rates):
            tokens = block_class(
                num_heads=config.num_heads,
                hidden_features=config.hidden_features,
                layer_scale=_LAYER_SCALE,
                eps=config.layer_norm_eps,
                key_bias=False,
                drop_path_rate=rate,
                dtype=self.dtype,
                grid=config.grid,
                size=size,
                name=f"block{index}",
            )(tokens, train)
            if index in config.taps:
                outputs.append(tokens)
        return transformer.to_maps(outputs, size)


class Block(transformer.Block):
    """A transformer block with its own position biases.

    They are computed here so that rematerialisation recomputes them with the block.

    Attributes:
        grid: side of the table's grid.
        size: (height, width) of the token grid.
    """

    grid: int = 24
    size: tuple[int, int] = (24, 24)

    @nn.compact
    def __call__(  # type: ignore[override]  # without the mask
        self, tokens: Float[Array, "b n c"], train: bool
    ) -> Float[Array, "b n c"]:
        shape = ((2 * self.grid - 1) ** 2 + 3, self.num_heads)
        table = self.param("position_bias", transformer_init, shape)
        return super().__call__(tokens, train, position_bias(table, self.size))


_LAYER_SCALE = 1e-5  # initial value


def position_bias(
    table: Float[Array, "rows heads"], size: tuple[int, int]
) -> Float[Array, "heads n n"]:
    """The bias for each query (second axis) and key (third axis) of a grid; class token first.

    Args:
        table: biases for a square grid of side g. The first (2g - 1)^2 rows form a square map over
            the offsets query - key, smallest first; the last three are for class token to token,
            token to class token, and the class token to itself.
        size: (height, width) of the grid.
    """
    (height, width), heads = size, table.shape[1]
    side = math.isqrt(len(table) - 3)
    offsets = table[:-3].reshape(1, side, side, heads)
    offsets = resize_bilinear(offsets, (2 * height - 1, 2 * width - 1), align_corners=False)
    # [heads, columns, rows] to [heads, columns, query y, key y], then the same for the columns.
    pairs = _pairs(jnp.transpose(offsets[0], (2, 1, 0)))
    pairs = _pairs(jnp.moveaxis(pairs, 1, -1))
    count = height * width
    pairs = pairs.transpose(0, 1, 3, 2, 4).reshape(heads, count, count)
    from_class, to_class, class_to_class = (row[:, None, None] for row in table[-3:])
    column = jnp.broadcast_to(to_class, (heads, count, 1))
    row = jnp.broadcast_to(from_class, (heads, 1, count))
    first = jnp.concatenate([class_to_class, row], 2)
    return jnp.concatenate([first, jnp.concatenate([column, pairs], 2)], 1)


def _pairs(offsets: Float[Array, "*b m"]) -> Float[Array, "*b n n"]:
    """Expands values by offset, from -(n - 1) to n - 1, to one per query and key on a line of n.

    A gather would work, but it needs a table of all pairs and its gradient is slow. Here the
    offsets form a ring of length 2 n that is read n times, advancing by 2 n - 1 for each query.
    """
    count = (offsets.shape[-1] + 1) // 2
    gap = jnp.zeros_like(offsets[..., :1])
    ring = [jnp.flip(offsets[..., :count], -1), gap, jnp.flip(offsets[..., count:], -1)]
    walk = jnp.tile(jnp.concatenate(ring, -1), count)[..., : count * (2 * count - 1)]
    return walk.reshape(*offsets.shape[:-1], count, 2 * count - 1)[..., :count]


# ---- weights -------------------------------------------------------------------------------------


def position_index(grid: int) -> Int[np.ndarray, "n n"]:
    """Row of the bias table for each query and key of a square grid; class token first."""
    y, x = np.divmod(np.arange(grid**2), grid)
    side = 2 * grid - 1
    rows, columns = (axis[:, None] - axis[None, :] + grid - 1 for axis in (y, x))
    index = np.full((1 + grid**2, 1 + grid**2), side**2, np.int64)
    index[1:, 0] = side**2 + 1
    index[0, 0] = side**2 + 2
    index[1:, 1:] = rows * side + columns
    return index


def _grid(rows: int) -> int:
    """Grid side of a table with this many rows."""
    return (math.isqrt(max(rows - 3, 0)) + 1) // 2


_INDEX = Transform(lambda index: index, lambda table: position_index(_grid(len(table))))


def rules(config: Config) -> Rules:
    """The conversion table for timm's names, including its classifier's."""
    block, here = r"blocks\.(\d+)", r"block\1"
    return (
        Rule("cls_token", "params/class_token", class_token),
        *conv_rules(r"patch_embed\.proj", "patch_embed"),
        *transformer.block_rules(block, here, key_bias=False),
        Rule(rf"{block}\.attn\.q_bias", f"params/{here}/attention/qkv_bias", part=(0, 2)),
        Rule(rf"{block}\.attn\.v_bias", f"params/{here}/attention/qkv_bias", part=(1, 2)),
        Rule(rf"{block}\.gamma_(\d)", rf"params/{here}/scale\2"),
        Rule(rf"{block}\.attn\.relative_position_bias_table", f"params/{here}/position_bias"),
        Derived(
            rf"{block}\.attn\.relative_position_index",
            "computed from the table's length",
            f"params/{here}/position_bias",
            _INDEX,
        ),
        *vit.unused_norm_rules("fc_norm", config.embed_dim),
        *vit.classifier_rules(config.embed_dim),
    )


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from names and shapes of weights; None for a different family.

    Weights do not determine the taps; the last block of each quarter is assumed.

    Raises:
        ValueError: if they are of this family, but describe an impossible network.
    """
    if "beit" not in registry.matching("encoder", shapes):
        return None
    depth, table = count(shapes, r"blocks\.(\d+)\."), r".+\.relative_position_bias_table"
    return Config(
        embed_dim=width(shapes, r"blocks\.\d+\.(norm\d\.\w+|gamma_\d)") or 0,
        depth=depth,
        num_heads=width(shapes, table, 1) or 0,
        hidden_features=width(shapes, r"blocks\.\d+\.mlp\.fc1\.\w+") or 0,
        patch_size=side(shapes, "patch_embed.proj.weight", 3),
        grid=_grid(width(shapes, table) or 0),
        taps=transformer.quarters(depth),
    )


# ---- Hugging Face's transformers -----------------------------------------------------------------


def transformers_rules(config: Config) -> Rules:
    """The conversion table for transformers' names: in files, and in modules since version 5."""
    del config
    root = r"(?:|beit\.)"
    block, here = rf"{root}{vit.TRANSFORMERS_BLOCK}", r"block\1"
    table = r"relative_position_bias\.relative_position"
    bias = f"params/{here}/attention/qkv_bias"
    attention = rf"{block}\.attention"
    return (
        Rule(rf"{root}embeddings\.cls_token", "params/class_token", class_token),
        *conv_rules(rf"{root}embeddings\.patch_embeddings\.projection", "patch_embed"),
        *vit.transformers_block_rules(block, here, qkv_bias=False),
        Rule(rf"{attention}\.(?:attention\.query|q_proj)\.bias", bias, part=(0, 2)),
        Rule(rf"{attention}\.(?:attention\.value|v_proj)\.bias", bias, part=(1, 2)),
        Rule(rf"{block}\.lambda_(\d)", rf"params/{here}/scale\2"),
        Rule(
            rf"{block}\.(?:attention\.attention\.|){table}_bias_table",
            f"params/{here}/position_bias",
        ),
        Skip(
            rf"{block}\.(?:attention\.attention\.|){table}_index",
            "computed from the table's length",
        ),
        Skip(rf"{root}layernorm\..+", "the norm after the last block, which the taps precede"),
        Skip(rf"{root}embeddings\.mask_token", "used only in masked-image pretraining"),
        Skip(r"(beit\.)?pooler\..+|classifier\..+|lm_head\..+", "used only for other tasks"),
    )


def infer_transformers(
    shapes: Mapping[str, tuple[int, ...]], described: Any = None
) -> Config | None:
    """Infers the config from weights named as in `transformers_rules`; None for others.

    Args:
        shapes: shapes of the weights by name.
        described: the content of a `config.json`. If empty, taps are as in `infer` and the norms
            have transformers' default epsilon.

    Raises:
        ValueError: if they are of this family, but describe an impossible network.
    """
    table = r".+\.relative_position_bias_table"
    block = rf"(?:beit\.)?{vit.TRANSFORMERS_BLOCK}"
    if not any(re.fullmatch(rf"{block}\.lambda_1", name) for name in shapes):
        return None
    patches = "embeddings.patch_embeddings.projection.weight"
    depth = count(shapes, rf"{block}\.")
    config = Config(
        embed_dim=width(shapes, r".+\.(layernorm_(before|after)\.\w+|lambda_\d)") or 0,
        depth=depth,
        num_heads=width(shapes, table, 1) or 0,
        hidden_features=width(shapes, r".+\.(intermediate\.dense|mlp\.fc1)\.\w+") or 0,
        patch_size=side(shapes, patches if patches in shapes else f"beit.{patches}", 3),
        grid=_grid(width(shapes, table) or 0),
        taps=transformer.quarters(depth),
        layer_norm_eps=vit.EPS_OF_TRANSFORMERS,
    )
    if not described:
        return config
    described.require(
        model_type=("beit",),
        hidden_act=("gelu",),
        use_absolute_position_embeddings=(False,),
        use_relative_position_bias=(True,),
        use_shared_relative_position_bias=(False,),
        add_fpn=(False,),
    )
    return replace(
        config,
        taps=described.taps(depth, config.taps),
        layer_norm_eps=described.value("layer_norm_eps", float, vit.EPS_OF_TRANSFORMERS),
        drop_path_rate=float(described.value("drop_path_rate", (int, float), 0.0)),
    )


def described(config: Config) -> dict[str, Any]:
    """The content of transformers' `config.json` for the encoder as a backbone of DPT."""
    return {
        "architectures": ["BeitBackbone"],
        "model_type": "beit",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_features,
        "layer_norm_eps": config.layer_norm_eps,
        "drop_path_rate": config.drop_path_rate,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "use_absolute_position_embeddings": False,
        "use_relative_position_bias": True,
        "use_mask_token": False,
        "layer_scale_init_value": 0.1,
        "out_indices": [tap + 1 for tap in config.taps],
        "out_features": [f"stage{tap + 1}" for tap in config.taps],
        "reshape_hidden_states": False,
    }


_UNDETERMINED = ("taps", "layer_norm_eps", "drop_path_rate", "remat")
LAYOUTS = {
    "timm": Layout(infer, rules, _UNDETERMINED),
    "transformers": Layout(infer_transformers, transformers_rules, _UNDETERMINED),
}
