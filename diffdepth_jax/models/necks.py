"""From encoder features to the denoiser's condition (DiffusionDepth, section 3.2).

A feature pyramid sums the levels from coarse to fine. It may be preceded by HAHI (Li et al. 2022,
arXiv:2203.14211) as the release uses it: with both attentions switched off, which leaves
projections and fusions within each level.

A plain vision transformer has no pyramid: all its maps have the stride of a patch, 14 pixels, too
coarse a condition for a latent of stride 2. Its four maps are therefore first reassembled at 1/4,
1/2, 1 and 2 times that stride, as in DPT (Ranftl et al. 2021, arXiv:2103.13413, section 3). Depth
Anything trained DINOv2 with this reassembly of the same four maps; ViTDet's pyramid (Li et al.
2022, arXiv:2203.16527) would use only the last of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdepth_jax.models.layers import FACTORS, BatchNorm, Conv, ConvTranspose, resampled
from diffdepth_jax.models.tables import batch_norm_rules, conv_rules
from diffdepth_jax.ops.image import adaptive_average_pool, size_of
from diffdepth_jax.typing import Features
from diffdepth_jax.weights.rules import Rule, Rules, Skip, conv_transpose


@dataclass(frozen=True)
class NeckConfig:
    """The neck.

    Attributes:
        features: channels of the pyramid and of the condition.
        hahi: whether HAHI comes before the pyramid.
        hahi_features: channels of HAHI's projections.
        reassemble: for an encoder without a pyramid, the channels of its four reassembled maps,
            fine to coarse; empty for an encoder with a pyramid.
    """

    features: int = 256
    hahi: bool = False
    hahi_features: int = 512
    reassemble: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.features, self.hahi_features) < 1:
            raise ValueError(
                f"features ({self.features}) and hahi_features ({self.hahi_features}) must be "
                "positive"
            )
        if self.reassemble and (len(self.reassemble) != 4 or min(self.reassemble) < 1):
            raise ValueError(
                f"reassemble is {self.reassemble}; it must be empty, or have four numbers of "
                "channels"
            )


def check(config: NeckConfig, reductions: Sequence[int]) -> None:
    """Rejects a neck that does not fit an encoder whose maps have these strides.

    Raises:
        ValueError: with the remedy.
    """
    alike = len(reductions) > 1 and len(set(reductions)) == 1
    if alike and len(reductions) != 4:
        raise ValueError(
            f"the encoder has {len(reductions)} maps, all with a stride of {reductions[0]} pixels: "
            "select four (encoder.taps), and set neck.reassemble to four channel counts"
        )
    if alike and not config.reassemble:
        raise ValueError(
            f"the encoder's maps all have a stride of {reductions[0]} pixels: set neck.reassemble "
            "to four channel counts, for example Depth Anything's (48, 96, 192, 384) for its "
            "small encoder or (256, 512, 1024, 1024) for its large one"
        )
    if config.reassemble and not alike:
        raise ValueError(
            "neck.reassemble needs four maps of equal stride, but the encoder's have strides "
            f"{tuple(reductions)}: leave it empty"
        )


def within_image(
    condition: Float[Array, "b h w c"],
    config: NeckConfig,
    reductions: Sequence[int],
    size: tuple[int, int],
) -> Float[Array, "b h2 w2 c"]:
    """Crops the condition to an image of (height, width) = size, rounded up.

    The condition is larger if the encoder had to pad the image to whole patches.
    """
    # A quarter of the patch stride may be fractional.
    quarters = reductions[0] if config.reassemble else 4 * reductions[0]
    height, width = (-(-4 * side // quarters) for side in size)
    return condition[:, :height, :width]


class Neck(nn.Module):
    """Features with any number of levels and any sizes to the condition, at the finest size."""

    config: NeckConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "b h w c"]:
        if self.config.reassemble:
            features = Reassemble(self.config.reassemble, self.dtype, name="reassemble")(features)
        if self.config.hahi:
            features = HAHI(self.config.hahi_features, self.dtype, name="hahi")(features, train)
        condition = None
        for level in reversed(range(len(features))):
            lateral = ConvNorm(self.config.features, 3, self.dtype, name=f"lateral{level}")(
                features[level], train
            )
            if condition is not None:
                coarse = Upsample(self.config.features, self.dtype, name=f"up{level}")(
                    condition, train
                )
                # Twice the coarser size is one row or column too many if this level's size is odd.
                lateral += adaptive_average_pool(coarse, size_of(lateral))
            condition = lateral
        return cast(Array, condition)  # never None for the finest level


class Reassemble(nn.Module):
    """Resamples four maps of one stride to 1/4, 1/2, 1 and 2 times that stride."""

    features: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, features: Features) -> Features:
        outputs = []
        for level, (inputs, factor) in enumerate(zip(features, FACTORS, strict=True)):
            hidden = Conv(self.features[level], 1, dtype=self.dtype, name=f"project{level}")(inputs)
            outputs.append(resampled(hidden, factor, self.dtype, f"resample{level}"))
        return tuple(outputs)


class HAHI(nn.Module):
    """Projects each level and fuses the projection back into it, keeping sizes and channels."""

    projected: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Features, train: bool) -> Features:
        outputs = []
        for level, inputs in enumerate(features):
            channels = inputs.shape[-1]
            lateral = ConvNorm(channels, 1, self.dtype, name=f"lateral{level}")(inputs, train)
            projection = ConvNorm(self.projected, 1, self.dtype, name=f"project{level}")(
                lateral, train
            )
            # The finest level, a convolutional map in the original, is concatenated second.
            pair = (lateral, projection) if level else (projection, lateral)
            outputs.append(
                ConvNorm(channels, 3, self.dtype, name=f"fuse{level}")(
                    jnp.concatenate(pair, -1), train
                )
            )
        return tuple(outputs)


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, ReLU."""

    features: int
    kernel_size: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w i"], train: bool) -> Float[Array, "b h w o"]:
        outputs = Conv(
            self.features, self.kernel_size, use_bias=False, dtype=self.dtype, name="conv"
        )(inputs)
        return jax.nn.relu(BatchNorm(train, name="norm")(outputs))


class Upsample(nn.Module):
    """Transposed 2x2 convolution of stride 2 without bias, BatchNorm, ReLU."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w i"], train: bool) -> Float[Array, "b h2 w2 o"]:
        outputs = ConvTranspose(self.features, 2, 2, use_bias=False, dtype=self.dtype, name="conv")(
            inputs
        )
        return jax.nn.relu(BatchNorm(train, name="norm")(outputs))


def rules(config: NeckConfig, levels: int) -> Rules:
    """The conversion table for the release's names, relative to `depth_head.`."""
    unused = "DiffusionDepth creates it but never uses it"
    table = (
        *conv_rules(r"conv_lateral\.(\d+)\.0", r"lateral\1/conv"),
        *batch_norm_rules(r"conv_lateral\.(\d+)\.1", r"lateral\1/norm"),
        Rule(r"conv_up\.(\d+)\.0\.weight", r"params/up\1/conv/kernel", conv_transpose),
        *batch_norm_rules(r"conv_up\.(\d+)\.1", r"up\1/norm"),
        Skip(r"convup_fp\..+", unused),
    )
    if not config.hahi:
        return table
    names = [(r"lateral_convs\.(\d+)", r"lateral\1"), (r"conv_proj\.0", "project0")]
    names += [(r"conv_fusion\.0", "fuse0")]
    # Transformer levels are counted from 0 but correspond to pyramid levels 1, 2, ...
    for index in range(levels - 1):
        names += [(rf"trans_proj\.{index}", f"project{index + 1}")]
        names += [(rf"trans_fusion\.{index}", f"fuse{index + 1}")]
    for key, path in names:
        table += (
            *conv_rules(rf"hahineck\.{key}\.conv", f"hahi/{path}/conv"),
            *batch_norm_rules(rf"hahineck\.{key}\.bn", f"hahi/{path}/norm"),
        )
    return (
        *table,
        Skip(
            r"hahineck\.(multi_att|self_attn|reference_points)\..+|hahineck\.level_embed",
            "DiffusionDepth disables HAHI's attention",
        ),
    )
