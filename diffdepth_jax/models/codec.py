"""Conversion between metric depth and the diffused latent (DiffusionDepth, section 3.3).

Both directions are small convolutional networks. The encoder takes depth in metres, 0 where there
is no measurement, and ends in tanh; the decoder ends in depth = 1 / sigmoid - 1.
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdepth_jax.models.layers import BatchNorm, Conv, ConvTranspose
from diffdepth_jax.models.tables import batch_norm_rules, conv_rules
from diffdepth_jax.ops.depth import depth_from_logit, logit_from_depth
from diffdepth_jax.weights.rules import Rule, Rules, conv_transpose


@dataclass(frozen=True)
class CodecConfig:
    """The latent codec.

    Attributes:
        factor: depth pixels per latent pixel along each axis.
        latent_channels: channels of the latent and of all hidden maps.
        pointwise: encode with two 1x1 convolutions, tanh and max-pooling (factor 2 only) instead of
            3x3 convolutions with BatchNorm.
        initial_depth: the decoder's bias is initialised to predict this depth in metres, ideally
            the mean of the training set; None for PyTorch's default initialisation, which gives
            about 1 m.
    """

    factor: Literal[1, 2, 4] = 2
    latent_channels: int = 16
    pointwise: bool = False
    initial_depth: float | None = None

    def __post_init__(self) -> None:
        if self.pointwise and self.factor != 2:
            raise ValueError(f"factor is {self.factor}; the pointwise encoder needs 2")
        if self.latent_channels < 1:
            raise ValueError(f"latent_channels is {self.latent_channels}; it must be positive")
        if self.initial_depth is not None:
            logit_from_depth(self.initial_depth)

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a depth map's latent, rounded up."""
        return -(-height // self.factor), -(-width // self.factor)


class Codec(nn.Module):
    """Encodes and decodes depth in metres; inputs and outputs are float32."""

    config: CodecConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        encoder = PointwiseEncoder if self.config.pointwise else Encoder
        self.encoder = encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def encode(
        self, depth: Float[Array, "b h w 1"], train: bool = False
    ) -> Float[Array, "b h2 w2 d"]:
        """Depth in metres (0 = no measurement) to a latent in [-1, 1]; odd sizes round up."""
        return self.encoder(depth, train).astype(jnp.float32)

    def decode(
        self, latent: Float[Array, "b h2 w2 d"], train: bool = False
    ) -> Float[Array, "b h w 1"]:
        """Latent to depth in metres, at `factor` times the latent's size."""
        return depth_from_logit(self.decoder(latent, train))


class Encoder(nn.Module):
    """Strided 3x3 convolutions plus one more, each with BatchNorm; LeakyReLU between, tanh last."""

    config: CodecConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Float[Array, "b h w 1"], train: bool) -> Float[Array, "b h2 w2 d"]:
        strides = {1: (1,), 2: (2,), 4: (2, 2)}[self.config.factor]
        for index, stride in enumerate((*strides, 1)):
            hidden = Conv(
                self.config.latent_channels,
                3,
                stride,
                use_bias=False,
                dtype=self.dtype,
                name=f"conv{index}",
            )(hidden)
            hidden = BatchNorm(train, name=f"norm{index}")(hidden)
            if index < len(strides):
                hidden = jax.nn.leaky_relu(hidden, 0.2)
        return jnp.tanh(hidden)


class PointwiseEncoder(nn.Module):
    """Two 1x1 convolutions with nothing between them, tanh, 3x3 max-pooling of stride 2."""

    config: CodecConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Float[Array, "b h w 1"], train: bool) -> Float[Array, "b h2 w2 d"]:
        del train
        for index in range(2):
            hidden = Conv(
                self.config.latent_channels,
                1,
                use_bias=False,
                dtype=self.dtype,
                name=f"conv{index}",
            )(hidden)
        return nn.max_pool(jnp.tanh(hidden), (3, 3), (2, 2), ((1, 1), (1, 1)))


class Decoder(nn.Module):
    """Transposed 4x4 convolutions, BatchNorm, ReLU, and a 3x3 convolution to the depth logit.

    With factor 1: two 3x3 convolutions without bias, each followed by BatchNorm, with LeakyReLU
    between. The last convolution is always float32: depth is exponential in the logit, so lower
    precision would quantise depth in steps of 1%.
    """

    config: CodecConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Float[Array, "b h2 w2 d"], train: bool) -> Float[Array, "b h w 1"]:
        channels = self.config.latent_channels
        start = self.config.initial_depth
        bias_init = nn.initializers.constant(logit_from_depth(start)) if start else None
        if self.config.factor == 1:
            hidden = Conv(channels, 3, use_bias=False, dtype=self.dtype, name="conv0")(hidden)
            hidden = jax.nn.leaky_relu(BatchNorm(train, name="norm0")(hidden), 0.2)
            logit = Conv(1, 3, use_bias=False, name="conv1")(hidden)
            bias_init = bias_init or nn.initializers.zeros_init()
            return BatchNorm(train, bias_init=bias_init, name="norm1")(logit)
        for index in range(self.config.factor // 2):
            hidden = ConvTranspose(channels, 4, 2, 1, dtype=self.dtype, name=f"up{index}")(hidden)
        hidden = jax.nn.relu(BatchNorm(train, name="norm0")(hidden))
        return Conv(1, 3, bias_init=bias_init, name="conv0")(hidden)


def rules(config: CodecConfig) -> Rules:
    """The conversion table for the release's names, relative to `depth_head.depth_transform.`."""
    if config.pointwise:
        encoder: Rules = conv_rules(r"conv_transform\.(\d)", r"encoder/conv\1")
    else:
        encoder = (
            *conv_rules(r"conv_transform\.(\d)\.0", r"encoder/conv\1"),
            *batch_norm_rules(r"conv_transform\.(\d)\.1", r"encoder/norm\1"),
        )
    key = "conv_inv_transform"
    if config.factor == 1:
        return (
            *encoder,
            *conv_rules(rf"{key}\.(\d)\.0", r"decoder/conv\1"),
            *batch_norm_rules(rf"{key}\.(\d)\.1", r"decoder/norm\1"),
        )
    # Positions in one torch.nn.Sequential: transposed convolutions, BatchNorm, ReLU, convolution.
    count = config.factor // 2
    return (
        *encoder,
        Rule(rf"{key}\.([0-{count - 1}])\.weight", r"params/decoder/up\1/kernel", conv_transpose),
        Rule(rf"{key}\.([0-{count - 1}])\.bias", r"params/decoder/up\1/bias"),
        *batch_norm_rules(rf"{key}\.{count}", "decoder/norm0"),
        *conv_rules(rf"{key}\.{count + 2}\.0", "decoder/conv0"),
    )
