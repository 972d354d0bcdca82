"""The network that predicts the noise in a latent (DiffusionDepth's monocular conditioned block).

It runs at every sampler step, so it is split into `prepare`, which computes everything that does
not depend on the step, and `denoise`. If the network has three consecutive convolutions, `compose`
merges them into one, which can be faster: `sampler_form` decides when.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from diffdepth_jax.models.layers import Conv, GroupNorm, Linear, normal
from diffdepth_jax.models.tables import conv_rules, norm_rules
from diffdepth_jax.ops import platform
from diffdepth_jax.ops.attention import attention
from diffdepth_jax.ops.composed_conv import (
    KERNEL_SIZE,
    ComposedConv,
    best_tile,
    compose,
    composed_conv,
)
from diffdepth_jax.ops.conv import Gradient
from diffdepth_jax.ops.image import adaptive_average_pool, resize_bilinear, size_of
from diffdepth_jax.weights.rules import Rule, Rules


@dataclass(frozen=True)
class DenoiserConfig:
    """The denoiser, which has as many channels as the condition.

    Attributes:
        variant: "official" matches the released weights, including a final ReLU that prevents
            negative predicted noise. "paper" follows the text: the condition is upsampled by a
            local projection, followed by residual convolution blocks and self-attention, and the
            output may be negative.
        hidden_features: channels of the layers next to the latent, at the input and the output.
        num_groups: groups of every GroupNorm.
        time_table: rows of the time embedding table; at least the number of training timesteps.
        fuse: official only; adds two convolutions without activation after the sum (`convA` and
            `convB` of the heads for Swin and MPViT).
        num_blocks: paper only; number of residual blocks. Attention follows the first.
        num_heads: paper only; attention heads.
        attention_tokens: paper only; before attention the map is average-pooled to at most this
            many pixels.
    """

    variant: Literal["official", "paper"] = "official"
    hidden_features: int = 64
    num_groups: int = 4
    time_table: int = 1280
    fuse: bool = False
    num_blocks: int = 2
    num_heads: int = 8
    attention_tokens: int = 1024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("variant", "fuse") and value < 1:
                raise ValueError(f"{name} is {value}; it must be positive")
        if self.hidden_features % self.num_groups:
            raise ValueError(
                f"hidden_features {self.hidden_features} must be divisible by num_groups "
                f"{self.num_groups}"
            )

    @property
    def composes(self) -> bool:
        """Whether the network has three consecutive convolutions, as "composed" needs."""
        return self.variant == "official" and self.fuse


SamplerForm = Literal["auto", "plain", "composed"]


def sampler_form(
    form: SamplerForm,
    denoiser: "Denoiser",
    size: tuple[int, int],
    num_inference_steps: int,
) -> Literal["plain", "composed"]:
    """Whether a sampling run composes convolutions; results agree up to rounding.

    Args:
        form: "auto" picks "composed" where benchmarks showed it to be faster: in float32 on the
            CPU, with at least 128 channels, and enough pixels and steps to pay for `compose`.
        denoiser: the denoiser of the run.
        size: (height, width) of the latent.
        num_inference_steps: denoising steps of the run.

    Raises:
        ValueError: for "composed" if the denoiser or the latent does not support it.
    """
    if form == "plain":
        return form
    height, width = size
    fits = denoiser.config.composes and min(height, width) >= KERNEL_SIZE
    if form == "composed":
        if fits:
            return form
        raise ValueError(
            f"sampler_form 'composed' needs a latent of at least {KERNEL_SIZE}x{KERNEL_SIZE} "
            f"pixels and a denoiser with variant='official' and fuse=True, not {height}x{width} "
            f"and {denoiser.config}: use 'auto' or 'plain'"
        )
    if form != "auto":
        raise ValueError(f"sampler_form must be 'auto', 'plain' or 'composed', not {form!r}")
    pays = (
        platform.current() == "cpu"
        and denoiser.dtype == jnp.float32
        and denoiser.features >= _COMPOSED_FEATURES
        and height * width * num_inference_steps >= _COMPOSED_PIXELS
    )
    return "composed" if fits and pays else "plain"


_COMPOSED_FEATURES = 128
_COMPOSED_PIXELS = 10_000  # latent pixels of an image, summed over all steps


class Composed(NamedTuple):
    """`fuse_conv0`, `fuse_conv1` and `predict_conv0` merged into one by `Denoiser.compose`.

    Attributes:
        conv: the convolution without biases.
        bias: the sum of the biases' contributions, which differs near the border.
    """

    conv: ComposedConv
    bias: Float[Array, "1 h w f"]


class Denoiser(nn.Module):
    """Maps condition, noisy latent and timesteps to a prediction of the latent's shape, float32.

    Attributes:
        config: see `DenoiserConfig`.
        features: channels of the condition.
        latent_channels: channels of the latent.
        dtype: type used in the computation; parameters and result are float32.
        gradient: how 3x3 convolutions and group norms are differentiated, see `ops.conv.conv3x3`
            and `ops.group_norm`.
    """

    config: DenoiserConfig
    features: int
    latent_channels: int
    dtype: Any = jnp.float32
    gradient: Gradient = "auto"

    def setup(self) -> None:
        config = self.config

        def conv(features: int) -> Conv:
            return Conv(features, 3, dtype=self.dtype, gradient=self.gradient)

        def norm() -> GroupNorm:
            return GroupNorm(config.num_groups, gradient=self.gradient)

        self.time_embedding = self.param(
            "time_embedding", normal(1.0), (config.time_table, self.features)
        )
        self.noise_conv0, self.noise_conv1 = conv(config.hidden_features), conv(self.features)
        self.noise_norm0, self.noise_norm1 = norm(), norm()
        if config.variant == "paper":
            self.project_conv, self.project_norm = conv(self.features), norm()
            block = (config.num_groups, self.dtype, self.gradient)
            self.blocks = [ResidualBlock(*block) for _ in range(config.num_blocks)]
            self.attention = SelfAttention(config.num_heads, config.attention_tokens, *block)
        elif config.fuse:
            self.fuse_conv0, self.fuse_conv1 = conv(self.features), conv(self.features)
        self.predict_conv0 = conv(config.hidden_features)
        self.predict_conv1 = conv(self.latent_channels)
        self.predict_norm0 = norm()
        if config.variant == "official":
            self.predict_norm1 = norm()

    def __call__(
        self,
        condition: Float[Array, "b h2 w2 c"],
        latent: Float[Array, "b h w d"],
        timesteps: Int[Array, " b"],
    ) -> Float[Array, "b h w d"]:
        """One prediction: `denoise` after `prepare`."""
        return self.denoise(self.prepare(condition, size_of(latent)), latent, timesteps)

    def prepare(
        self, condition: Float[Array, "b h2 w2 c"], size: tuple[int, int]
    ) -> Float[Array, "b h w c"]:
        """The condition at the latent's size.

        The release adds the time embedding before resizing. Bilinear resizing preserves constants,
        so the embedding can be added afterwards and the resizing done once for all steps.
        """
        prepared = resize_bilinear(condition.astype(self.dtype), size)
        if self.config.variant == "paper":
            prepared = jax.nn.relu(self.project_norm(self.project_conv(prepared)))
        return prepared

    def denoise(
        self,
        prepared: Float[Array, "b h w c"],
        latent: Float[Array, "b h w d"],
        timesteps: Int[Array, " b"],
        composed: Composed | None = None,
    ) -> Float[Array, "b h w d"]:
        """Predicts from what `prepare` returned; timesteps must be below `config.time_table`.

        Passing what `compose` returned gives the same result up to rounding.
        """
        embedding = self.time_embedding[timesteps].astype(self.dtype)[:, None, None, :]
        hidden = jax.nn.relu(self.noise_norm0(self.noise_conv0(latent)))
        hidden = jax.nn.relu(self.noise_norm1(self.noise_conv1(hidden)))
        hidden = prepared + embedding + hidden
        if composed is not None:
            hidden = composed_conv(hidden, composed.conv) + composed.bias
        else:
            if self.config.variant == "paper":
                for index, block in enumerate(self.blocks):
                    hidden = block(hidden)
                    if index == 0:
                        hidden = self.attention(hidden)
            elif self.config.fuse:
                hidden = self.fuse_conv1(self.fuse_conv0(hidden))
            hidden = self.predict_conv0(hidden)
        output = self.predict_conv1(jax.nn.relu(self.predict_norm0(hidden)))
        if self.config.variant == "official":
            output = jax.nn.relu(self.predict_norm1(output))
        return output.astype(jnp.float32)

    def compose(self, size: tuple[int, int]) -> Composed:
        """Composed convolutions for `denoise` with latents of this size; see `sampler_form`."""
        convs = (self.fuse_conv0, self.fuse_conv1, self.predict_conv0)
        first, second, third = (
            conv.variables["params"]["kernel"].astype(self.dtype) for conv in convs
        )
        # Biases only, on a 7x7 map that has one pixel for each distance from the borders.
        bias = jnp.zeros((1, KERNEL_SIZE, KERNEL_SIZE, self.features), self.dtype)
        for conv in convs:
            bias = conv(bias)
        rows, columns = (_spread_matrix(side) for side in size)
        bias = jnp.einsum("hy,wx,byxf->bhwf", rows, columns, bias, precision="highest")
        return Composed(compose(first, second, third, best_tile(size)), bias)


def _spread_matrix(side: int) -> np.ndarray:
    """[side, 7]: one-hot index of the pixel, out of seven, at the same distance from the border."""
    index, border = np.arange(side), KERNEL_SIZE // 2
    like = np.minimum(index, border) + np.maximum(index - (side - 1 - border), 0)
    return np.eye(KERNEL_SIZE, dtype=np.float32)[like]


class ResidualBlock(nn.Module):
    """GroupNorm, ReLU and a 3x3 convolution, twice, added to the input."""

    num_groups: int
    dtype: Any
    gradient: Gradient

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        hidden = inputs
        for index in range(2):
            norm = GroupNorm(self.num_groups, gradient=self.gradient, name=f"norm{index}")
            hidden = jax.nn.relu(norm(hidden))
            hidden = Conv(
                inputs.shape[-1], 3, dtype=self.dtype, gradient=self.gradient, name=f"conv{index}"
            )(hidden)
        return inputs + hidden


class SelfAttention(nn.Module):
    """Multi-head attention between all pixels of an average-pooled map, added to the input."""

    num_heads: int
    max_tokens: int
    num_groups: int
    dtype: Any
    gradient: Gradient

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        height, width, channels = inputs.shape[1:]
        factor = 1
        while -(-height // factor) * -(-width // factor) > self.max_tokens:
            factor += 1
        size = (-(-height // factor), -(-width // factor))
        normalised = GroupNorm(self.num_groups, gradient=self.gradient, name="norm")(inputs)
        tokens = adaptive_average_pool(normalised, size)
        mixed = Linear(3 * channels, dtype=self.dtype, name="qkv")(tokens)
        query, key, value = rearrange(
            mixed, "b h w (three heads c) -> three b (h w) heads c", three=3, heads=self.num_heads
        )
        attended = rearrange(attention(query, key, value), "b (h w) n c -> b h w (n c)", h=size[0])
        attended = Linear(channels, dtype=self.dtype, name="out")(attended)
        return inputs + resize_bilinear(attended, (height, width))


def rules() -> Rules:
    """The conversion table for the release's names, relative to `depth_head.model.`."""
    return (
        Rule(r"time_embedding\.weight", "params/time_embedding"),
        *conv_rules(r"noise_embedding\.0", "noise_conv0"),
        *norm_rules(r"noise_embedding\.1", "noise_norm0"),
        *conv_rules(r"noise_embedding\.3", "noise_conv1"),
        *norm_rules(r"noise_embedding\.4", "noise_norm1"),
        *conv_rules(r"upsample_fuse\.convA\.conv", "fuse_conv0"),
        *conv_rules(r"upsample_fuse\.convB\.conv", "fuse_conv1"),
        *conv_rules(r"pred\.0", "predict_conv0"),
        *norm_rules(r"pred\.1", "predict_norm0"),
        *conv_rules(r"pred\.3", "predict_conv1"),
        *norm_rules(r"pred\.4", "predict_norm1"),
    )
