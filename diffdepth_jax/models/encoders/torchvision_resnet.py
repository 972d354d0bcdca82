"""The ResNet of He et al. 2016 (arXiv:1512.03385) with its stem, as torchvision has it.

A 7x7 convolution and a 3x3 maximum, both of stride 2, come before four stages of two- or
three-layer blocks. In the latter the 3x3 convolution strides, not the first 1x1 of the paper.
timm's plain ResNets have the same arithmetic and names. (DiffusionDepth's own, without a stem, is
`resnet`.)
"""

from collections.abc import Mapping
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
        block: "basic", two 3x3 convolutions, or "bottleneck", 1x1, 3x3 and 1x1 to four times the
            channels.
        depths: blocks of each stage.
        widths: channels of each stage's 3x3 convolutions; the stem has the first's.
    """

    name: Literal["torchvision_resnet"] = "torchvision_resnet"
    block: Literal["basic", "bottleneck"] = "basic"
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)

    def __post_init__(self):
        if not self.depths or len(self.depths) != len(self.widths):
            raise ValueError(
                f"depths {self.depths} and widths {self.widths} must have one entry for each stage"
            )
        if min(*self.depths, *self.widths) < 1:
            raise ValueError(f"depths {self.depths} and widths {self.widths} must be positive")

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple((4 if self.block == "bottleneck" else 1) * width for width in self.widths)

    @property
    def reductions(self) -> tuple[int, ...]:
        return tuple(2 ** (stage + 2) for stage in range(len(self.depths)))


VARIANTS = {
    "18": Config(),
    "34": Config(depths=(3, 4, 6, 3)),
    "50": Config(block="bottleneck", depths=(3, 4, 6, 3)),
    "101": Config(block="bottleneck", depths=(3, 4, 23, 3)),
    "152": Config(block="bottleneck", depths=(3, 8, 36, 3)),
}


class Encoder(nn.Module):
    """Image to features at strides 4, 8, 16, 32 (sizes rounded up)."""

    config: Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> Features:
        config, outputs = self.config, []
        features = _conv(config.widths[0], 7, 2, self.dtype, name="conv1")(image)
        features = jax.nn.relu(BatchNorm(train, name="bn1")(features))
        features = nn.max_pool(features, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                features = Block(
                    width,
                    stride,
                    config.block == "bottleneck",
                    self.dtype,
                    name=f"layer{stage + 1}_block{block}",
                )(features, train)
            outputs.append(features)
        return tuple(outputs)


class Block(nn.Module):
    """Convolutions with BatchNorm, and a shortcut that has weights where the shape changes."""

    width: int
    stride: int
    bottleneck: bool
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w i"], train: bool) -> Float[Array, "b h2 w2 o"]:
        width, stride = self.width, self.stride
        layers = [(3, stride, width), (3, 1, width)]  # kernel size, stride, channels
        if self.bottleneck:
            layers = [(1, 1, width), (3, stride, width), (1, 1, 4 * width)]
        features = layers[-1][-1]
        hidden = inputs
        for index, (size, step, channels) in enumerate(layers, 1):
            hidden = hidden if index == 1 else jax.nn.relu(hidden)
            hidden = _conv(channels, size, step, self.dtype, name=f"conv{index}")(hidden)
            hidden = BatchNorm(train, name=f"bn{index}")(hidden)
        if stride != 1 or inputs.shape[-1] != features:
            inputs = _conv(features, 1, stride, self.dtype, name="shortcut_conv")(inputs)
            inputs = BatchNorm(train, name="shortcut_bn")(inputs)
        return jax.nn.relu(hidden + inputs)


def _conv(features: int, size: int, stride: int, dtype: Any, name: str) -> Conv:
    """Without bias, drawn as torchvision does: Kaiming-normal over the outputs."""
    init = normal((2.0 / (size * size * features)) ** 0.5)
    return Conv(features, size, stride, use_bias=False, dtype=dtype, kernel_init=init, name=name)


def rules(config: Config) -> Rules:
    """The table of torchvision's names; the same for every config."""
    del config
    block, here = r"layer(\d+)\.(\d+)", r"layer\1_block\2"
    return (
        *conv_rules("conv1", "conv1"),
        *batch_norm_rules("bn1", "bn1"),
        *conv_rules(rf"{block}\.(conv\d)", rf"{here}/\3"),
        *batch_norm_rules(rf"{block}\.(bn\d)", rf"{here}/\3"),
        *conv_rules(rf"{block}\.downsample\.0", f"{here}/shortcut_conv"),
        *batch_norm_rules(rf"{block}\.downsample\.1", f"{here}/shortcut_bn"),
    )


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config of weights with these names and shapes; None if they are not of this family.

    Raises:
        ValueError: if they are, but an entry that tells the architecture is missing.
    """
    if "torchvision_resnet" not in registry.matching("encoder", shapes):
        return None
    stages = range(1, count(shapes, r"layer(\d+)\.\d+\.conv1\.") + 1)
    return Config(
        block="bottleneck" if "layer1.0.conv3.weight" in shapes else "basic",
        depths=tuple(count(shapes, rf"layer{stage}\.(\d+)\.conv1\.") for stage in stages),
        widths=tuple(side(shapes, f"layer{stage}.0.conv1.weight") for stage in stages),
    )


def _classifier_rules(config: Config) -> Rules:
    return (*rules(config), Skip(r"fc\..+", "the classifier, which an encoder ends before"))


LAYOUTS = {"torchvision": Layout(infer, _classifier_rules)}
