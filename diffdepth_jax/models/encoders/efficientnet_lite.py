"""EfficientNet-Lite: EfficientNet (Tan and Le 2019, arXiv:1905.11946, table 1) for mobile devices.

Unlike EfficientNet, it has no squeeze-and-excitation and uses ReLU6 instead of swish. The stem and
the number of blocks of the first and last stage are not scaled. Names follow geffnet's
`tf_efficientnet_lite` models, which use TensorFlow's padding and batch norm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdepth_jax import registry
from diffdepth_jax.models.layers import BatchNorm, Conv, normal
from diffdepth_jax.models.tables import Layout, batch_norm_rules, conv_rules, count, side
from diffdepth_jax.typing import Features
from diffdepth_jax.weights.rules import Rules, Skip

# For each stage: size of the depthwise kernels, stride of the first block.
_STAGES = ((3, 1), (3, 2), (5, 2), (3, 2), (5, 1), (5, 2), (3, 1))
_EXPANSION = 6  # ratio of hidden to input channels; the first stage has no expansion
_LEVELS = (1, 2, 4, 6)  # the last stage at each stride; these are the features
_EPS, _MOMENTUM = 1e-3, 0.01  # of BatchNorm


@dataclass(frozen=True)
class Config:
    """Blocks and channels of the seven stages.

    Attributes:
        stem: channels of the first convolution.
        depths: blocks of each stage.
        widths: channels of each stage.
    """

    name: Literal["efficientnet_lite"] = "efficientnet_lite"
    stem: int = 32
    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)

    def __post_init__(self) -> None:
        if (len(self.depths), len(self.widths)) != (len(_STAGES), len(_STAGES)):
            raise ValueError(
                f"depths {self.depths} and widths {self.widths} must have one entry for each of "
                f"the {len(_STAGES)} stages"
            )
        if min(self.stem, *self.depths, *self.widths) < 1:
            raise ValueError(
                f"stem {self.stem}, depths {self.depths} and widths {self.widths} must be positive"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.widths[stage] for stage in _LEVELS)

    @property
    def reductions(self) -> tuple[int, ...]:
        return (4, 8, 16, 32)


_DEEPER = (1, 3, 3, 4, 4, 5, 1)
VARIANTS = {
    "lite0": Config(),
    "lite1": Config(depths=_DEEPER),
    "lite2": Config(depths=_DEEPER, widths=(16, 24, 48, 88, 120, 208, 352)),
    "lite3": Config(depths=(1, 3, 3, 5, 5, 6, 1), widths=(24, 32, 48, 96, 136, 232, 384)),
    "lite4": Config(depths=(1, 4, 4, 6, 6, 8, 1), widths=(24, 32, 56, 112, 160, 272, 448)),
}


class Encoder(nn.Module):
    """Image to features at strides 4, 8, 16, 32 (sizes rounded up)."""

    config: Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> Features:
        config, outputs = self.config, []
        features = _conv(config.stem, 3, 2, self.dtype, "stem_conv")(image)
        features = jax.nn.relu6(_norm(train, "stem_bn")(features))
        for stage, (size, stride) in enumerate(_STAGES):
            for block in range(config.depths[stage]):
                features = Block(
                    config.widths[stage],
                    size,
                    stride if block == 0 else 1,
                    stage > 0,
                    self.dtype,
                    name=f"stage{stage}_block{block}",
                )(features, train)
            if stage in _LEVELS:
                outputs.append(features)
        return tuple(outputs)


class Block(nn.Module):
    """1x1 expansion (not in the first stage), depthwise convolution, linear 1x1 projection."""

    features: int
    size: int
    stride: int
    expands: bool
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w i"], train: bool) -> Float[Array, "b h2 w2 o"]:
        hidden = inputs
        if self.expands:
            width = _EXPANSION * inputs.shape[-1]
            hidden = _conv(width, 1, 1, self.dtype, "expand_conv")(hidden)
            hidden = jax.nn.relu6(_norm(train, "expand_bn")(hidden))
        width = hidden.shape[-1]
        hidden = _conv(width, self.size, self.stride, self.dtype, "depthwise_conv", width)(hidden)
        hidden = jax.nn.relu6(_norm(train, "depthwise_bn")(hidden))
        hidden = _conv(self.features, 1, 1, self.dtype, "project_conv")(hidden)
        hidden = _norm(train, "project_bn")(hidden)
        return hidden + inputs if hidden.shape == inputs.shape else hidden


def _conv(features: int, size: int, stride: int, dtype: Any, name: str, groups: int = 1) -> Conv:
    """Convolution without bias, initialised as in the paper's code: normal, by group fan-out."""
    return Conv(
        features,
        size,
        stride,
        padding="same",
        groups=groups,
        use_bias=False,
        dtype=dtype,
        kernel_init=normal((2.0 * groups / (size * size * features)) ** 0.5),
        name=name,
    )


def _norm(train: bool, name: str) -> BatchNorm:
    return BatchNorm(train, momentum=_MOMENTUM, eps=_EPS, name=name)


def rules(config: Config) -> Rules:
    """The conversion table for geffnet's names."""
    del config
    stages = [rf"blocks\.{stage}" for stage in range(len(_STAGES))]
    return rules_named("conv_stem", "bn1", stages)


def rules_named(conv: str, norm: str, stages: Sequence[str]) -> Rules:
    """The conversion table, given name patterns of the stem's two layers and of the stages."""
    rows = [*conv_rules(conv, "stem_conv"), *batch_norm_rules(norm, "stem_bn")]
    for stage, name in enumerate(stages):
        layers = [("conv_pw", "bn1", "expand"), ("conv_dw", "bn2", "depthwise")]
        layers += [("conv_pwl", "bn3", "project")]
        if stage == 0:
            layers = [("conv_dw", "bn1", "depthwise"), ("conv_pw", "bn2", "project")]
        for conv_name, norm_name, here in layers:
            path = rf"stage{stage}_block\1/{here}"
            rows += conv_rules(rf"{name}\.(\d+)\.{conv_name}", f"{path}_conv")
            rows += batch_norm_rules(rf"{name}\.(\d+)\.{norm_name}", f"{path}_bn")
    return tuple(rows)


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from names and shapes of weights; None for a different family.

    Raises:
        ValueError: if they are of this family, but an entry that determines the architecture is
            missing.
    """
    if "efficientnet_lite" not in registry.matching("encoder", shapes):
        return None
    stages = range(len(_STAGES))
    last = ("conv_pw", *["conv_pwl"] * (len(_STAGES) - 1))
    return Config(
        stem=side(shapes, "conv_stem.weight"),
        depths=tuple(count(shapes, rf"blocks\.{stage}\.(\d+)\.conv_dw\.") for stage in stages),
        widths=tuple(side(shapes, f"blocks.{stage}.0.{last[stage]}.weight") for stage in stages),
    )


def _classifier_rules(config: Config) -> Rules:
    reason = "the classifier, which is not part of the encoder"
    return (*rules(config), Skip(r"(?:conv_head|bn2|classifier)\..+", reason))


LAYOUTS = {"geffnet": Layout(infer, _classifier_rules)}
