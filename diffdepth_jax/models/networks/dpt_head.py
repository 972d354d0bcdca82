"""The decoder of dense prediction transformers (Ranftl et al. 2021, arXiv:2103.13413, section 3).

Four encoder maps are *reassembled* at strides of about 4, 8, 16 and 32 pixels (3.5, 7, 14 and 28
for a patch of 14), projected to the same number of channels, and *fused* from coarse to fine by
residual convolutions and upsampling. MiDaS v2.1 (arXiv:1907.01341), DPT, Depth Anything and
ZoeDepth differ only in the options of `DPTHeadConfig`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffdepth_jax.models.layers import FACTORS, Conv, Factor, TransformerLinear, gelu, resampled
from diffdepth_jax.models.tables import conv_rules, linear_rules
from diffdepth_jax.ops.image import resize_bilinear, size_of
from diffdepth_jax.weights.rules import Constant, Row, Rule, Rules, conv_transpose


@dataclass(frozen=True)
class DPTHeadConfig:
    """The head.

    Attributes:
        project_features: for each level, fine to coarse, the channels of the 1x1 convolution before
            resampling; None for a level without one.
        factors: for each level, how it is then resampled.
        readout: for each level, whether the class token is concatenated to every patch token and
            projected back ("project" in the paper).
        level_features: for each level, the channels of its 3x3 convolution.
        narrowing: whether fusing a level reduces channels to those of the next finer level, as in
            MiDaS v2.1 small; otherwise all fused maps have the same number.
        fusion_projection: whether each fused map goes through a 1x1 convolution after upsampling.
        rectified_shortcut: whether a residual unit adds the rectified input instead of the input,
            as MiDaS v2.1 large does (its ReLU is in-place).
        explicit_sizes: whether a fused map is upsampled to the next finer level's size; otherwise
            by a factor of 2.
        output_features: hidden channels of the last two convolutions.
        output_align_corners: `align_corners` of the last upsampling.
        activation: after the last convolution: "relu", "sigmoid" (which the caller multiplies by
            the maximum depth) or "identity".
    """

    project_features: tuple[int | None, ...]
    factors: tuple[Factor, ...] = FACTORS
    readout: tuple[bool, ...] = (False, False, False, False)
    level_features: tuple[int, ...] = (256, 256, 256, 256)
    narrowing: bool = False
    fusion_projection: bool = True
    rectified_shortcut: bool = False
    explicit_sizes: bool = True
    output_features: int = 32
    output_align_corners: bool = True
    activation: Literal["relu", "sigmoid", "identity"] = "relu"

    def __post_init__(self) -> None:
        lengths = {
            len(each)
            for each in (self.project_features, self.factors, self.readout, self.level_features)
        }
        if len(lengths) != 1:
            raise ValueError(
                "project_features, factors, readout and level_features must have one entry per "
                f"level: {self}"
            )
        if not self.narrowing and len(set(self.level_features)) != 1:
            raise ValueError(
                f"level_features {self.level_features} must be equal if the fusion does not narrow"
            )

    @property
    def fused_features(self) -> tuple[int, ...]:
        """Channels of the fused maps, fine to coarse."""
        return (self.level_features[0], *self.level_features[:-1])


class Decoded(NamedTuple):
    """The head's output and intermediate maps, which ZoeDepth's heads use.

    Attributes:
        output: [b, h, w, 1], after the activation.
        hidden: [b, h, w, output_features], before the last convolution, rectified.
        fused: the fused maps, fine to coarse.
        coarsest: the coarsest level after its 3x3 convolution.
    """

    output: Array
    hidden: Array
    fused: tuple[Array, ...]
    coarsest: Array


class DPTHead(nn.Module):
    """Encoder maps, and optionally class tokens, to a single channel."""

    config: DPTHeadConfig
    dtype: Any = jnp.float32

    def __call__(
        self,
        features: Sequence[Float[Array, "b _ _ _"]],
        size: tuple[int, int],
        class_tokens: Sequence[Float[Array, "b _"] | None] | None = None,
    ) -> Float[Array, "b h w 1"]:
        """The output of `decode`."""
        return self.decode(features, size, class_tokens).output

    @nn.compact
    def decode(
        self,
        features: Sequence[Float[Array, "b _ _ _"]],
        size: tuple[int, int],
        class_tokens: Sequence[Float[Array, "b _"] | None] | None = None,
    ) -> Decoded:
        """Encoder maps to a single channel; also returns intermediate maps.

        Args:
            features: one map per level, fine to coarse.
            size: (height, width) of the result.
            class_tokens: one per level, required where the config has a readout, otherwise None.
        """
        config, dtype = self.config, self.dtype
        levels = []
        for level, features_in in enumerate(features):
            hidden = features_in
            if config.readout[level]:
                token = None if class_tokens is None else class_tokens[level]
                if token is None:
                    raise ValueError("the head's readout needs the encoder's class tokens")
                readout = Readout(dtype, name=f"readout{level}")
                hidden = readout(hidden, token)
            if (channels := config.project_features[level]) is not None:
                hidden = Conv(channels, 1, dtype=dtype, name=f"project{level}")(hidden)
            hidden = resampled(hidden, config.factors[level], dtype, f"resample{level}")
            hidden = Conv(
                config.level_features[level], 3, use_bias=False, dtype=dtype, name=f"level{level}"
            )(hidden)
            levels.append(hidden)

        fused: list[Array] = []
        previous = None
        for level in reversed(range(len(levels))):
            block = FusionBlock(config, config.fused_features[level], dtype, name=f"fusion{level}")
            target = None
            if level > 0 and config.explicit_sizes:
                target = size_of(levels[level - 1])
            previous = block(levels[level], previous, target)
            fused.insert(0, previous)

        hidden = Conv(config.fused_features[0] // 2, 3, dtype=dtype, name="output1")(fused[0])
        hidden = resize_bilinear(hidden, size, align_corners=config.output_align_corners)
        hidden = Conv(config.output_features, 3, dtype=dtype, name="output2")(hidden)
        hidden = jax.nn.relu(hidden)
        output = Conv(1, 1, dtype=dtype, name="output3")(hidden).astype(jnp.float32)
        if config.activation == "relu":
            output = jax.nn.relu(output)
        elif config.activation == "sigmoid":
            output = jax.nn.sigmoid(output)
        return Decoded(output, hidden, tuple(fused), levels[-1])


class Readout(nn.Module):
    """Concatenates the class token to each patch token, projects back, and applies GELU."""

    dtype: Any

    @nn.compact
    def __call__(
        self, features: Float[Array, "b h w c"], class_token: Float[Array, "b c"]
    ) -> Float[Array, "b h w c"]:
        token = jnp.broadcast_to(class_token[:, None, None], features.shape)
        both = jnp.concatenate([features, token], -1)
        linear = TransformerLinear(features.shape[-1], dtype=self.dtype, name="project")
        return gelu(linear(both))


class ResidualUnit(nn.Module):
    """ReLU and 3x3 convolution, twice, with a shortcut."""

    rectified_shortcut: bool
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        rectified = jax.nn.relu(inputs)
        hidden = Conv(inputs.shape[-1], 3, dtype=self.dtype, name="conv1")(rectified)
        hidden = jax.nn.relu(hidden)
        hidden = Conv(inputs.shape[-1], 3, dtype=self.dtype, name="conv2")(hidden)
        return hidden + (rectified if self.rectified_shortcut else inputs)


class FusionBlock(nn.Module):
    """Fuses a level with the fused map of the coarser levels and upsamples the result."""

    config: DPTHeadConfig
    features: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        level: Float[Array, "b h w c"],
        coarser: Float[Array, "b h w c"] | None,
        size: tuple[int, int] | None,
    ) -> Float[Array, "b h2 w2 o"]:
        rectified = self.config.rectified_shortcut
        if coarser is not None:
            level = coarser + ResidualUnit(rectified, self.dtype, name="unit1")(level)
        level = ResidualUnit(rectified, self.dtype, name="unit2")(level)
        height, width = level.shape[1:3]
        if self.config.fusion_projection:
            # The papers project after upsampling. The two commute, and there are fewer pixels
            # before it.
            level = Conv(self.features, 1, dtype=self.dtype, name="project")(level)
        return resize_bilinear(level, size or (2 * height, 2 * width))


class Names(NamedTuple):
    """Patterns of a publication's names for the fusion modules.

    Attributes:
        level: a level's 3x3 convolution, with `{0}` for the level counted from 0, `{1}` from 1 and
            `{2}` from 0 at the coarsest.
        block: a fusion block, with the same placeholders.
        unit, conv: a residual unit in the block and its convolutions, without their numbers.
        project: the 1x1 convolution in the block.
    """

    level: str
    block: str
    unit: str
    conv: str
    project: str


MIDAS = Names(r"scratch\.layer{1}_rn", r"scratch\.refinenet{1}", "resConfUnit", "conv", "out_conv")
TRANSFORMERS = Names(
    r"neck\.convs\.{0}",
    r"neck\.fusion_stage\.layers\.{2}",
    "residual_layer",
    "convolution",
    "projection",
)


def rules(config: DPTHeadConfig, outputs: tuple[str, str, str], names: Names = MIDAS) -> Rules:
    """The conversion table for the fusion and the last three convolutions.

    Args:
        config: the head's config.
        outputs: name patterns of the last three convolutions.
        names: names of the fusion: those that MiDaS, DPT and Depth Anything share, or
            transformers'.

    The names of projection and resampling differ by network, see `reassemble_rules`.
    """
    rows: list[Row] = []
    for index, name in enumerate(outputs, 1):
        rows += conv_rules(name, f"output{index}")
    last = len(config.level_features) - 1
    for level, channels in enumerate(config.level_features):
        numbers = level, level + 1, last - level
        block, here = names.block.format(*numbers), f"fusion{level}"
        unit = rf"{block}\.{names.unit}"
        rows += conv_rules(names.level.format(*numbers), f"level{level}")
        rows += conv_rules(rf"{unit}2\.{names.conv}(\d)", rf"{here}/unit2/conv\1")
        if config.fusion_projection:
            rows += conv_rules(rf"{block}\.{names.project}", f"{here}/project")
        if level < last:
            rows += conv_rules(rf"{unit}1\.{names.conv}(\d)", rf"{here}/unit1/conv\1")
            continue
        for number in (1, 2):
            name = rf"{unit}1\.{names.conv}{number}"
            reason = "unused: the coarsest level has nothing to fuse with"
            kernel, bias = (channels, channels, 3, 3), (channels,)
            rows.append(Constant(rf"{name}\.weight", reason, _zeros(kernel)))
            rows.append(Constant(rf"{name}\.bias", reason, _zeros(bias)))
    return tuple(rows)


def reassemble_rules(config: DPTHeadConfig, readout: str, project: str, resample: str) -> Rules:
    """The conversion table for the levels' readout, projection and resampling.

    Args:
        config: the head's config.
        readout, project, resample: name patterns, with `{0}` for the level counted from 0 and `{1}`
            for the level counted from 1.
    """
    rows: list[Row] = []
    for level, factor in enumerate(config.factors):
        if config.readout[level]:
            name = readout.format(level, level + 1)
            rows += linear_rules(name, f"readout{level}/project")
        if config.project_features[level] is not None:
            rows += conv_rules(project.format(level, level + 1), f"project{level}")
        name = resample.format(level, level + 1)
        if factor == "1/2":
            rows += conv_rules(name, f"resample{level}")
        elif factor != "1":
            rows.append(Rule(rf"{name}\.weight", f"params/resample{level}/kernel", conv_transpose))
            rows.append(Rule(rf"{name}\.bias", f"params/resample{level}/bias"))
    return tuple(rows)


def transformers_rules(config: DPTHeadConfig, outputs: tuple[str, str, str]) -> Rules:
    """The whole conversion table for transformers' names in DPT, Depth Anything and ZoeDepth.

    Args:
        config: the head's config.
        outputs: see `rules`.
    """
    stage = r"neck\.reassemble_stage"
    names = (
        rf"{stage}\.readout_projects\.{{0}}\.0",
        rf"{stage}\.layers\.{{0}}\.projection",
        rf"{stage}\.layers\.{{0}}\.resize",
    )
    return (*reassemble_rules(config, *names), *rules(config, outputs, TRANSFORMERS))


def _zeros(shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    return lambda: np.zeros(shape, np.float32)
