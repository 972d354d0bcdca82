"""The ResNet of DiffusionDepth: four stages of BasicBlocks without a stem.

Based on He et al. 2016 (arXiv:1512.03385), with the changes of the release
(duanyiqun/DiffusionDepth, `mmbev_resnet.py`): the first stage takes the image itself; every stage
halves the size; the shortcut of a stage's first block is a plain 3x3 convolution with bias and no
norm; and "50" and "101" differ from "18" only in the number of BasicBlocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdepth_jax import registry
from diffdepth_jax.models.layers import BatchNorm, Conv
from diffdepth_jax.models.tables import Layout, batch_norm_rules, conv_rules, count, side
from diffdepth_jax.typing import Features
from diffdepth_jax.weights.rules import Rules


@dataclass(frozen=True)
class Config:
    """Blocks and channels of each stage."""

    name: Literal["resnet"] = "resnet"
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.widths):
            raise ValueError(
                f"depths {self.depths} and widths {self.widths} must have one entry per stage"
            )
        if min(*self.depths, *self.widths) < 1:
            raise ValueError(f"depths {self.depths} and widths {self.widths} must be positive")

    @property
    def channels(self) -> tuple[int, ...]:
        return self.widths

    @property
    def reductions(self) -> tuple[int, ...]:
        return tuple(2 ** (stage + 1) for stage in range(len(self.depths)))


VARIANTS = {
    "18": Config(),
    "50": Config(depths=(3, 4, 6, 3)),
    "101": Config(depths=(3, 4, 23, 3)),
}


class Encoder(nn.Module):
    """Image to features at strides 2, 4, 8, 16; an odd side n becomes (n + 1) / 2."""

    config: Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> Features:
        features, outputs = image.astype(self.dtype), []
        for stage, (depth, width) in enumerate(
            zip(self.config.depths, self.config.widths, strict=True)
        ):
            for block in range(depth):
                features = Block(
                    width, 2 if block == 0 else 1, self.dtype, name=f"stage{stage}_block{block}"
                )(features, train)
            outputs.append(features)
        return tuple(outputs)


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut, which has weights if strided."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Float[Array, "b h w i"], train: bool) -> Float[Array, "b h2 w2 o"]:
        def conv(name: str, stride: int = 1, use_bias: bool = False) -> Conv:
            return Conv(self.features, 3, stride, use_bias=use_bias, dtype=self.dtype, name=name)

        hidden = jax.nn.relu(BatchNorm(train, name="bn1")(conv("conv1", self.stride)(inputs)))
        hidden = BatchNorm(train, name="bn2")(conv("conv2")(hidden))
        if self.stride != 1:
            inputs = conv("shortcut", self.stride, use_bias=True)(inputs)
        return jax.nn.relu(hidden + inputs)


def rules(config: Config) -> Rules:
    """The conversion table for DiffusionDepth's names; the same for every config."""
    del config
    block, here = r"layers\.(\d+)\.(\d+)", r"stage\1_block\2"
    return (
        *conv_rules(rf"{block}\.(conv\d)", rf"{here}/\3"),
        *conv_rules(rf"{block}\.downsample", f"{here}/shortcut"),
        *batch_norm_rules(rf"{block}\.(bn\d)", rf"{here}/\3"),
    )


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from names and shapes of weights; None for a different family.

    Raises:
        ValueError: if they are of this family, but an entry that determines the architecture is
            missing.
    """
    if "resnet" not in registry.matching("encoder", shapes):
        return None
    stages = range(count(shapes, r"layers\.(\d+)\.\d+\.conv1\."))
    return Config(
        depths=tuple(count(shapes, rf"layers\.{stage}\.(\d+)\.conv1\.") for stage in stages),
        widths=tuple(side(shapes, f"layers.{stage}.0.conv1.weight") for stage in stages),
    )


LAYOUTS = {"diffusion_depth": Layout(infer, rules)}
