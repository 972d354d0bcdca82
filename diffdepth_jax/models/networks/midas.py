"""MiDaS v2.1 (Ranftl et al. 2022, arXiv:1907.01341): disparity up to scale and shift.

The large network uses ResNeXt-101 and the small one EfficientNet-Lite3, each with a RefineNet
decoder (Lin et al. 2017, arXiv:1611.06612), which later became the head of dense prediction
transformers. MiDaS v3 and later are `dpt`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffdepth_jax import registry
from diffdepth_jax.models.networks import dpt_head
from diffdepth_jax.models.networks.dpt_head import DPTHead, DPTHeadConfig
from diffdepth_jax.models.networks.network import (
    HasEncoder,
    NetworkConfig,
    Published,
    Variants,
    encoder_variant,
)
from diffdepth_jax.models.tables import side
from diffdepth_jax.typing import InputSpec
from diffdepth_jax.weights.rules import Rules, prefix

OUTPUT = "relative_disparity"
INPUT = InputSpec(
    size=(384, 384),
    bound="upper",
    multiple=32,
    interpolation="bicubic",
    output_interpolation="bicubic",
)
# Two generations of file names; the networks can be told apart by their weights.
FILES: Mapping[str, Mapping[str, Any]] = {
    r"midas_v21_384|(model|midas_v21)-f6b98070": {},
    r"midas_v21_small_256|(model-small|midas_v21_small)-70d6b9c8": {},
}
UNDETERMINED: Mapping[str, tuple[Any, ...]] = {}
TRANSFORMERS = None


def large_head(features: int = 256, output_features: int = 32) -> DPTHeadConfig:
    """The large network's head: no projections, and residual units add rectified inputs."""
    return DPTHeadConfig(
        project_features=(None,) * 4,
        factors=("1",) * 4,
        level_features=(features,) * 4,
        fusion_projection=False,
        rectified_shortcut=True,
        explicit_sizes=False,
        output_features=output_features,
        output_align_corners=False,
    )


def small_head(features: int = 64, output_features: int = 32) -> DPTHeadConfig:
    """The small network's head: channels double from each level to the next coarser one."""
    return DPTHeadConfig(
        project_features=(None,) * 4,
        factors=("1",) * 4,
        level_features=(features, 2 * features, 4 * features, 8 * features),
        narrowing=True,
        explicit_sizes=False,
        output_features=output_features,
        output_align_corners=False,
    )


@dataclass(frozen=True, kw_only=True)
class Config(NetworkConfig, HasEncoder, Published):
    """A MiDaS network.

    Attributes:
        encoder, max_depth: see `HasEncoder` and `NetworkConfig`.
        head: config of the decoder.
        input_size: upper bound in pixels for both sides of the network's input in `predict`.
    """

    name: Literal["midas"] = "midas"
    head: DPTHeadConfig = field(default_factory=large_head)
    input_size: int = 384

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder.reductions != (4, 8, 16, 32):
            raise ValueError(
                f"the encoder's maps have strides {self.encoder.reductions}; the head needs (4, 8, "
                "16, 32)"
            )
        if self.input_size < 32:
            raise ValueError(f"input_size is {self.input_size}; it must be at least 32")

    @property
    def input_spec(self) -> InputSpec:
        return replace(INPUT, size=(self.input_size, self.input_size))


VARIANTS = Variants(
    {
        "large": lambda: Config(encoder=encoder_variant("torchvision_resnet", "resnext101_32x8d")),
        "small": lambda: Config(
            encoder=encoder_variant("efficientnet_lite", "lite3"),
            head=small_head(),
            input_size=256,
        ),
    }
)


class MiDaS(nn.Module):
    """The network. Images are normalised by `INPUT`; disparity is relative, float32.

    Attributes: config: the network's config.
        dtype: type used by convolutions; parameters, normalisation statistics and the result are
        float32. frozen: parts ("encoder", "head") that are not trained: during training too, they
        run as in inference.
    """

    config: Config
    dtype: Any = jnp.float32
    frozen: tuple[str, ...] = ()

    def setup(self) -> None:
        config = self.config
        encoder = registry.module("encoder", config.encoder.name)
        self.encoder = encoder.Encoder(config.encoder, dtype=self.dtype)
        self.head = DPTHead(config.head, dtype=self.dtype)

    def __call__(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> Float[Array, "b h w 1"]:
        """Normalised image to disparity of the same size, at least 0; larger is nearer.

        Raises:
            ValueError: if a side is not a multiple of 32.
        """
        height, width = image.shape[1:3]
        if height % INPUT.multiple or width % INPUT.multiple:
            raise ValueError(
                f"the image has {height}x{width} pixels, but both sides must be multiples of "
                f"{INPUT.multiple}: resize it, as `predict` does"
            )
        features = self.encoder(jnp.asarray(image), train and "encoder" not in self.frozen)
        return self.head(features, (height, width))

    def init_variables(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Freshly initialised {"params", "batch_stats"}; use `jax.eval_shape` for shapes only."""
        side = 2 * max(self.config.encoder.reductions)
        return dict(self.init(key, jnp.zeros((1, side, side, 3))))


def build(config: Config, dtype: Any = jnp.float32, frozen: tuple[str, ...] = ()) -> MiDaS:
    """The module for a config; see `MiDaS` for `dtype` and `frozen`."""
    return MiDaS(config, dtype, frozen)


# The release's names of encoder parts: the encoder file's name to the release's.
_ENCODER_NAMES = {
    "torchvision_resnet": {
        "conv1": "pretrained.layer1.0",
        "bn1": "pretrained.layer1.1",
        "layer1": "pretrained.layer1.4",
        "layer2": "pretrained.layer2",
        "layer3": "pretrained.layer3",
        "layer4": "pretrained.layer4",
    },
    "efficientnet_lite": {
        "conv_stem": "pretrained.layer1.0",
        "bn1": "pretrained.layer1.1",
        "blocks.0": "pretrained.layer1.3",
        "blocks.1": "pretrained.layer1.4",
        "blocks.2": "pretrained.layer2.0",
        "blocks.3": "pretrained.layer3.0",
        "blocks.4": "pretrained.layer3.1",
        "blocks.5": "pretrained.layer4.0",
        "blocks.6": "pretrained.layer4.1",
    },
}
_OUTPUTS = (r"scratch\.output_conv\.0", r"scratch\.output_conv\.2", r"scratch\.output_conv\.4")


def rules(config: Config) -> Rules:
    """The conversion table for the release's names."""
    name = config.encoder.name
    conv, norm, *stages = map(re.escape, _ENCODER_NAMES[name].values())
    encoder = registry.module("encoder", name).rules_named(conv, norm, stages)
    return (
        *prefix(encoder, "", "encoder"),
        *prefix(dpt_head.rules(config.head, _OUTPUTS), "", "head"),
    )


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from the names and shapes of a state dict; None for an unknown family.

    Raises:
        ValueError: if the family is known, but an entry that determines the architecture is
            missing.
    """
    if "midas" not in registry.matching("network", shapes):
        return None
    small = any(".conv_dw." in name for name in shapes)
    encoder_name = "efficientnet_lite" if small else "torchvision_resnet"
    encoder = registry.module("encoder", encoder_name).infer(_renamed(shapes, encoder_name))
    if encoder is None:
        return None
    features = side(shapes, "scratch.output_conv.0.weight", 1)
    outputs = side(shapes, "scratch.output_conv.2.weight")
    if small:
        return Config(encoder=encoder, head=small_head(features, outputs), input_size=256)
    return Config(encoder=encoder, head=large_head(features, outputs))


def _renamed(shapes: Mapping[str, tuple[int, ...]], encoder: str) -> dict[str, tuple[int, ...]]:
    """The encoder's entries, with the names used in the encoder's file."""
    return {
        here + name.removeprefix(there): shape
        for name, shape in shapes.items()
        for here, there in _ENCODER_NAMES[encoder].items()
        if name.startswith(f"{there}.")
    }


def with_arguments(config: Config, arguments: Mapping[str, Any]) -> Config:
    """The unchanged config: the release's files have no arguments."""
    del arguments
    return config


def arguments(config: Config) -> dict[str, Any]:
    """Empty, see `with_arguments`."""
    del config
    return {}
