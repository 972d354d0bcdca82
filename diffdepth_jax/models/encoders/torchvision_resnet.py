"""The ResNet of He et al. 2016 (arXiv:1512.03385) with its stem, as in torchvision.

A 7x7 convolution and 3x3 max-pooling, both with stride 2, precede four stages of two- or
three-layer blocks. In three-layer blocks the 3x3 convolution is strided, not the first 1x1 as in
the paper, and it may be wider and grouped (ResNeXt, Xie et al. 2017, arXiv:1611.05431, section
3.1). timm's plain ResNets compute the same and have the same names. (DiffusionDepth's ResNet, which
has no stem, is `resnet`.)
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


@dataclass(frozen=True)
class Config:
    """Blocks and channels of each stage.

    Attributes:
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, and 1x1 to four times the
            channels).
        depths: blocks of each stage.
        widths: nominal channels of each stage's 3x3 convolutions; the stem has as many as the
            first.
        groups: groups of the 3x3 convolutions in bottleneck blocks.
        width_per_group: channels per group in a stage of 64 nominal channels; scaled in proportion
            in other stages.
        stem_features: whether the stem's map, of stride 2, is returned as the first feature.
    """

    name: Literal["torchvision_resnet"] = "torchvision_resnet"
    block: Literal["basic", "bottleneck"] = "basic"
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    groups: int = 1
    width_per_group: int = 64
    stem_features: bool = False

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.widths):
            raise ValueError(
                f"depths {self.depths} and widths {self.widths} must have one entry per stage"
            )
        if min(*self.depths, *self.widths) < 1:
            raise ValueError(f"depths {self.depths} and widths {self.widths} must be positive")
        if self.block == "basic" and (self.groups, self.width_per_group) != (1, 64):
            raise ValueError(
                f"groups {self.groups} and width_per_group {self.width_per_group} need "
                "block='bottleneck'"
            )
        if min(self.groups, self.width_per_group, *self.inner_widths) < 1:
            raise ValueError(
                f"groups {self.groups} and width_per_group {self.width_per_group} leave no "
                f"channels in stages of widths {self.widths}"
            )

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """Channels of each stage's 3x3 convolutions."""
        return tuple(self.groups * (width * self.width_per_group // 64) for width in self.widths)

    @property
    def channels(self) -> tuple[int, ...]:
        stem = self.widths[:1] if self.stem_features else ()
        factor = 4 if self.block == "bottleneck" else 1
        return (*stem, *(factor * width for width in self.widths))

    @property
    def reductions(self) -> tuple[int, ...]:
        stem = (2,) if self.stem_features else ()
        return (*stem, *(2 ** (stage + 2) for stage in range(len(self.depths))))


VARIANTS = {
    "18": Config(),
    "34": Config(depths=(3, 4, 6, 3)),
    "50": Config(block="bottleneck", depths=(3, 4, 6, 3)),
    "101": Config(block="bottleneck", depths=(3, 4, 23, 3)),
    "152": Config(block="bottleneck", depths=(3, 8, 36, 3)),
    "resnext50_32x4d": Config(
        block="bottleneck", depths=(3, 4, 6, 3), groups=32, width_per_group=4
    ),
    "resnext101_32x8d": Config(
        block="bottleneck", depths=(3, 4, 23, 3), groups=32, width_per_group=8
    ),
}


class Encoder(nn.Module):
    """Image to features at strides 4, 8, 16, 32, or 2 to 32 (sizes rounded up)."""

    config: Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> Features:
        config, outputs = self.config, []
        features = _conv(config.widths[0], 7, 2, self.dtype, name="conv1")(image)
        features = jax.nn.relu(BatchNorm(train, name="bn1")(features))
        if config.stem_features:
            outputs.append(features)
        # Padded separately, as jax2onnx only converts "SAME" padding correctly; XLA fuses it again.
        padded = jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
        features = nn.max_pool(padded, window_shape=(3, 3), strides=(2, 2), padding="VALID")
        for stage, depth in enumerate(config.depths):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"layer{stage + 1}_block{block}"
                features = Block(config, stage, stride, self.dtype, name=name)(features, train)
            outputs.append(features)
        return tuple(outputs)


class Block(nn.Module):
    """Convolutions with BatchNorm, and a shortcut that has weights if the shape changes."""

    config: Config
    stage: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w i"], train: bool) -> Float[Array, "b h2 w2 o"]:
        config, stride = self.config, self.stride
        width, inner = config.widths[self.stage], config.inner_widths[self.stage]
        layers = [(3, stride, width), (3, 1, width)]  # kernel size, stride, channels
        if config.block == "bottleneck":
            layers = [(1, 1, inner), (3, stride, inner), (1, 1, 4 * width)]
        features = layers[-1][-1]
        hidden = inputs
        for index, (size, step, channels) in enumerate(layers, 1):
            hidden = hidden if index == 1 else jax.nn.relu(hidden)
            groups = config.groups if size == 3 else 1
            name = f"conv{index}"
            hidden = _conv(channels, size, step, self.dtype, name, groups)(hidden)
            hidden = BatchNorm(train, name=f"bn{index}")(hidden)
        if stride != 1 or inputs.shape[-1] != features:
            inputs = _conv(features, 1, stride, self.dtype, name="shortcut_conv")(inputs)
            inputs = BatchNorm(train, name="shortcut_bn")(inputs)
        return jax.nn.relu(hidden + inputs)


def _conv(features: int, size: int, stride: int, dtype: Any, name: str, groups: int = 1) -> Conv:
    """Convolution without bias, initialised as in torchvision: Kaiming normal, by fan-out."""
    init = normal((2.0 / (size * size * features)) ** 0.5)
    return Conv(
        features,
        size,
        stride,
        groups=groups,
        use_bias=False,
        dtype=dtype,
        kernel_init=init,
        name=name,
    )


def rules(config: Config) -> Rules:
    """The conversion table for torchvision's names."""
    return rules_named("conv1", "bn1", [f"layer{stage + 1}" for stage in range(len(config.depths))])


def rules_named(conv: str, norm: str, stages: Sequence[str]) -> Rules:
    """The conversion table, given name patterns of the stem's two layers and of the stages."""
    rows = [*conv_rules(conv, "conv1"), *batch_norm_rules(norm, "bn1")]
    for stage, name in enumerate(stages, 1):
        block, here = rf"{name}\.(\d+)", rf"layer{stage}_block\1"
        rows += conv_rules(rf"{block}\.(conv\d)", rf"{here}/\2")
        rows += batch_norm_rules(rf"{block}\.(bn\d)", rf"{here}/\2")
        rows += conv_rules(rf"{block}\.downsample\.0", f"{here}/shortcut_conv")
        rows += batch_norm_rules(rf"{block}\.downsample\.1", f"{here}/shortcut_bn")
    return tuple(rows)


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from names and shapes of weights; None for a different family.

    Raises:
        ValueError: if they are of this family, but an entry that determines the architecture is
            missing.
    """
    if "torchvision_resnet" not in registry.matching("encoder", shapes):
        return None
    stages = range(1, count(shapes, r"layer(\d+)\.\d+\.conv1\.") + 1)
    depths = tuple(count(shapes, rf"layer{stage}\.(\d+)\.conv1\.") for stage in stages)
    if "layer1.0.conv3.weight" not in shapes:
        widths = tuple(side(shapes, f"layer{stage}.0.conv1.weight") for stage in stages)
        return Config(depths=depths, widths=widths)
    widths = tuple(max(side(shapes, f"layer{stage}.0.conv3.weight") // 4, 1) for stage in stages)
    inner = side(shapes, "layer1.0.conv2.weight")
    groups = max(inner // max(side(shapes, "layer1.0.conv2.weight", 1), 1), 1)
    return Config(
        block="bottleneck",
        depths=depths,
        widths=widths,
        groups=groups,
        # Rounded up, because `inner_widths` rounds down.
        width_per_group=-(-64 * inner // (groups * widths[0])),
    )


def _classifier_rules(config: Config) -> Rules:
    return (*rules(config), Skip(r"fc\..+", "the classifier, which is not part of the encoder"))


LAYOUTS = {"torchvision": Layout(infer, _classifier_rules, ("stem_features",))}
