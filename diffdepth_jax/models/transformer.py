"""What vision transformers share: attention over all tokens, blocks, position embeddings."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdepth_jax.models.layers import (
    DropPath,
    LayerNorm,
    Mlp,
    SwiGLU,
    TransformerLinear,
    transformer_init,
)
from diffdepth_jax.ops.attention import attention


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) with one kernel for queries, keys and values.

    Attributes:
        num_heads: the channels divide into them.
        key_bias: whether keys have a bias; without it the bias has 2 c entries, those of the
            queries and of the values (BEiT).
        dtype: of the matrix products; the softmax is computed in float32.
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
            bias = self.param("qkv_bias", nn.initializers.zeros_init(), (2 * channels,))
            bias = jnp.concatenate([bias[:channels], jnp.zeros(channels), bias[channels:]])
            qkv += bias[None, None].astype(self.dtype)
        query, key, value = jnp.moveaxis(
            qkv.reshape(*tokens.shape[:2], 3, self.num_heads, -1), 2, 0
        )
        tokens = attention(query, key, value, position_bias).reshape(tokens.shape)
        return TransformerLinear(channels, dtype=self.dtype, name="projection")(tokens)


class Block(nn.Module):
    """Attention and a feed-forward part, each after its norm and beside a shortcut.

    Attributes:
        num_heads, key_bias: see `Attention`.
        hidden_features: of the feed-forward part.
        gated: whether that is a `layers.SwiGLU`, not an `Mlp`.
        layer_scale: the initial factor of each branch's channels (Touvron et al. 2021,
            arXiv:2103.17239, section 2); without one, branches have no factors.
        eps: of the layer norms.
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


def add_class_token(
    module: nn.Module, tokens: Float[Array, "b n c"], name: str = "class_token"
) -> Float[Array, "b m c"]:
    """Puts the module's learnt class token, the parameter `name` [c], before each image's tokens.

    Only within the module's compact method.
    """
    token = module.param(name, transformer_init, tokens.shape[-1:])
    token = jnp.broadcast_to(token, (len(tokens), 1, tokens.shape[-1])).astype(tokens.dtype)
    return jnp.concatenate([token, tokens], 1)


def resize_positions(
    positions: Float[Array, "n c"],
    size: tuple[int, int],
    resize: Callable[[Array, tuple[int, int]], Array],
) -> Float[Array, "m c"]:
    """Position embeddings of a square grid, after that of the class token, for another grid.

    Args:
        positions: 1 + g * g of them.
        size: (height, width) of the new grid.
        resize: of a map [1, g, g, c] to such a size, such as `ops.image.resize_bicubic`.

    Returns:
        1 + height * width of them; the class token's stays as it is.
    """
    side, channels = round((len(positions) - 1) ** 0.5), positions.shape[-1]
    grid = resize(positions[1:].reshape(1, side, side, channels), size)
    return jnp.concatenate([positions[:1], grid.reshape(-1, channels)])
