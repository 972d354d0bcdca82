"""Shared parts of vision transformers: attention over all tokens, blocks, position embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdepth_jax.models.layers import (
    Conv,
    DropPath,
    LayerNorm,
    Mlp,
    SwiGLU,
    TransformerLinear,
    transformer_init,
)
from diffdepth_jax.models.tables import linear_rules, norm_rules
from diffdepth_jax.ops.attention import attention
from diffdepth_jax.ops.image import pad_to_multiple
from diffdepth_jax.ops.remat import POLICIES, Remat
from diffdepth_jax.typing import Features
from diffdepth_jax.weights.rules import Rules


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) with one kernel for queries, keys and values.

    Attributes:
        num_heads: must divide the channels.
        key_bias: whether keys have a bias; otherwise the bias has 2 c entries, for queries and
            values only (BEiT).
        dtype: type of the matrix products; the softmax is computed in float32.
    """

    num_heads: int
    key_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        position_bias: Float[Array, "heads n n"] | None = None,
    ) -> Float[Array, "b n c"]:
        """Tokens to tokens; `position_bias` is added to the logits of every image."""
        channels = tokens.shape[-1]
        qkv = TransformerLinear(3 * channels, use_bias=self.key_bias, dtype=self.dtype, name="qkv")(
            tokens
        )
        if not self.key_bias:
            qkv += keyless_bias(self, channels)[None, None].astype(self.dtype)
        query, key, value = jnp.moveaxis(
            qkv.reshape(*tokens.shape[:2], 3, self.num_heads, -1), 2, 0
        )
        tokens = attention(query, key, value, position_bias).reshape(tokens.shape)
        return TransformerLinear(channels, dtype=self.dtype, name="projection")(tokens)


class Block(nn.Module):
    """Attention and a feed-forward part, each with a pre-norm and a shortcut.

    Attributes:
        num_heads, key_bias: see `Attention`.
        hidden_features: hidden channels of the feed-forward part.
        gated: whether that part is a `layers.SwiGLU` instead of an `Mlp`.
        layer_scale: initial LayerScale of each branch (Touvron et al. 2021, arXiv:2103.17239,
            section 2); None for no LayerScale.
        eps: epsilon of the layer norms.
        drop_path_rate: see `layers.DropPath`.
    """

    num_heads: int
    hidden_features: int
    layer_scale: float | None = None
    eps: float = 1e-6
    key_bias: bool = True
    gated: bool = False
    drop_path_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        train: bool = False,
        position_bias: Float[Array, "heads n n"] | None = None,
    ) -> Float[Array, "b n c"]:
        attention = Attention(self.num_heads, self.key_bias, self.dtype, name="attention")
        feed_forward = SwiGLU if self.gated else Mlp
        mlp = feed_forward(self.hidden_features, self.dtype, name="mlp")
        branch = attention(LayerNorm(self.eps, name="norm1")(tokens), position_bias)
        tokens += self._branch(branch, "scale1", train)
        branch = mlp(LayerNorm(self.eps, name="norm2")(tokens))
        return tokens + self._branch(branch, "scale2", train)

    def _branch(self, branch: Array, name: str, train: bool) -> Array:
        if self.layer_scale is not None:
            init = nn.initializers.constant(self.layer_scale)
            scale = self.param(name, init, branch.shape[-1:])
            branch = branch * scale[None, None].astype(branch.dtype)
        return DropPath(self.drop_path_rate)(branch, train)


def keyless_bias(module: nn.Module, channels: int) -> Float[Array, " n"]:
    """The module's learnt bias for queries and values, the parameter `qkv_bias` [2 channels], with
    zeros inserted for the keys: [3 channels].

    Must be called in the module's compact method.
    """
    bias = module.param("qkv_bias", nn.initializers.zeros_init(), (2 * channels,))
    return jnp.concatenate([bias[:channels], jnp.zeros(channels), bias[channels:]])


def recomputed(block: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """The block class, called with (tokens, train), rematerialised as `remat` says."""
    if remat == "none":
        return block
    return nn.remat(block, policy=POLICIES[remat], static_argnums=(2,))  # train


def check_blocks(
    embed_dim: int, depth: int, num_heads: int, taps: Sequence[int], drop_path_rate: float
) -> None:
    """Rejects config fields that no vision transformer can have.

    Raises:
        ValueError: names the field and the reason.
    """
    if min(embed_dim, depth, num_heads) < 1 or embed_dim % num_heads:
        raise ValueError(
            f"embed_dim {embed_dim}, depth {depth} and num_heads {num_heads} must be positive, and "
            "embed_dim must be a multiple of num_heads"
        )
    rising = all(a < b for a, b in zip((-1, *taps), taps, strict=False))
    if not taps or not rising or taps[-1] != depth - 1:
        raise ValueError(
            f"taps are {tuple(taps)}; they must be increasing block numbers that end with the last "
            f"block, {depth - 1}"
        )
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"drop_path_rate is {drop_path_rate}; it must be in [0, 1)")


def quarters(depth: int) -> tuple[int, ...]:
    """Indices of the last block of each quarter of the depth."""
    return tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))


def embed_patches(
    image: Float[Array, "b h w 3"], embed_dim: int, patch_size: int, dtype: Any
) -> Float[Array, "b h2 w2 c"]:
    """Image to tokens, by the convolution `patch_embed`. Must be called in a compact method.

    Images whose sides are not multiples of the patch are padded by repeating the last row and
    column.
    """
    convolution = Conv(
        embed_dim,
        patch_size,
        patch_size,
        padding=0,
        dtype=dtype,
        kernel_init=transformer_init,
        bias_init=nn.initializers.zeros_init(),
        name="patch_embed",
    )
    return convolution(pad_to_multiple(jnp.asarray(image), patch_size))


def to_maps(
    outputs: Sequence[Float[Array, "b n c"]], size: tuple[int, int]
) -> tuple[Features, tuple[Float[Array, "b c"], ...]]:
    """Output tokens of blocks to maps of (height, width) = size, and the class tokens."""
    features = tuple(tokens[:, 1:].reshape(tokens.shape[0], *size, -1) for tokens in outputs)
    return features, tuple(tokens[:, 0] for tokens in outputs)


def block_rules(
    block: str,
    path: str,
    key_bias: bool = True,
    feed_forward: tuple[str, str] = ("fc1", "fc2"),
) -> Rules:
    """Rules for a `Block` without its scales, for timm's names, which Meta shares.

    Args:
        block, path: pattern of the block's name, and template of its path here.
        key_bias: whether the attention's bias is stored as an entry next to its kernel.
        feed_forward: names of the feed-forward part's dense layers.
    """
    first, last = feed_forward
    qkv = linear_rules(rf"{block}\.attn\.qkv", f"{path}/attention/qkv")
    return (
        *norm_rules(rf"{block}\.norm1", f"{path}/norm1"),
        *norm_rules(rf"{block}\.norm2", f"{path}/norm2"),
        *(qkv if key_bias else qkv[:1]),
        *linear_rules(rf"{block}\.attn\.proj", f"{path}/attention/projection"),
        *linear_rules(rf"{block}\.mlp\.{first}", f"{path}/mlp/fc1"),
        *linear_rules(rf"{block}\.mlp\.{last}", f"{path}/mlp/fc2"),
    )


def add_class_token(module: nn.Module, patches: Float[Array, "b h w c"]) -> Float[Array, "b n c"]:
    """Embedded patches to tokens: the module's learnt `class_token` [c], then patches row by row.

    Tokens are accumulated in float32; only branches use lower precision. Must be called in the
    module's compact method.
    """
    batch, channels = patches.shape[0], patches.shape[-1]
    tokens = patches.reshape(batch, -1, channels).astype(jnp.float32)
    token = module.param("class_token", transformer_init, (channels,))
    return jnp.concatenate([jnp.broadcast_to(token, (batch, 1, channels)), tokens], 1)


def resize_positions(
    positions: Float[Array, "n c"],
    size: tuple[int, int],
    resize: Callable[[Array, tuple[int, int]], Array],
) -> Float[Array, "m c"]:
    """Resizes position embeddings from a square grid to another; the class token's comes first.

    Args:
        positions: 1 + g * g embeddings.
        size: (height, width) of the new grid.
        resize: resizes a map [1, g, g, c] to a size, for example `ops.image.resize_bicubic`.

    Returns:
        1 + height * width embeddings; the class token's is unchanged.
    """
    side, channels = round((len(positions) - 1) ** 0.5), positions.shape[-1]
    grid = resize(positions[1:].reshape(1, side, side, channels), size)
    return jnp.concatenate([positions[:1], grid.reshape(-1, channels)])
