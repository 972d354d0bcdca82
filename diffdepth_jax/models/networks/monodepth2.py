"""Monodepth2 (Godard et al. 2019, arXiv:1806.01260, section 4): the depth network, as in md4all.

A ResNet and a decoder with skip connections and nearest-neighbour upsampling predict disparity
between 0 and 1 at four scales, which maps to a depth range. md4all (Gasperini et al. 2023,
arXiv:2308.09711) learns the scale from the car's speed, so its depth is in metres; monodepth2's own
weights are correct up to a factor (5.4 for those trained on stereo pairs).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffdepth_jax import registry
from diffdepth_jax.models.encoders import torchvision_resnet
from diffdepth_jax.models.layers import Conv
from diffdepth_jax.models.networks.network import (
    HasEncoder,
    NetworkConfig,
    PredictsScales,
    Published,
    Variants,
    encoder_variant,
)
from diffdepth_jax.models.tables import conv_rules, side
from diffdepth_jax.typing import InputSpec
from diffdepth_jax.weights.rules import Constant, Rules, Skip, prefix

OUTPUT = "metric_depth"

# Mean and standard deviation of all channels, by `Config.normalisation`. For "image" the network
# computes those of each image.
_STATISTICS = {
    "dataset": (0.45, 0.225),
    "nuscenes_day": (0.4130, 0.2093),
    "nuscenes_night": (0.1652, 0.1728),
    "robotcar_day": (0.5758, 0.319),
    "robotcar_night": (0.2471, 0.2627),
    "image": (0.0, 1.0),
}
Normalisation = Literal[
    "dataset", "nuscenes_day", "nuscenes_night", "robotcar_day", "robotcar_night", "image"
]
INPUT = InputSpec(
    size=(320, 576),
    keep_aspect=False,
    multiple=32,
    interpolation="lanczos",
    mean=(0.45,) * 3,
    std=(0.225,) * 3,
    output_interpolation="bilinear",
    output_align_corners=True,
)
# md4all's files and monodepth2's folders.
FILES: Mapping[str, Mapping[str, Any]] = {
    r"(baseline|md4all\w*)_nuscenes": {},
    r"(baseline|md4all\w*)_robotcar": {"input_size": (320, 544)},
    r"(mono|stereo|mono\+stereo)(_no_pt)?_\d+x\d+": {},
}
UNDETERMINED: Mapping[str, tuple[Any, ...]] = {}
TRANSFORMERS = None

_SCALES = 4
_OWN_MAX_DEPTH, _OWN_INPUT_SIZE = 100.0, (192, 640)  # for monodepth2's own weights


@dataclass(frozen=True, kw_only=True)
class Config(NetworkConfig, HasEncoder, Published):
    """A monodepth2-style network.

    Attributes:
        encoder: see `HasEncoder`; its first map has a stride of 2.
        min_depth, max_depth: depth in metres at disparities of 1 and 0.
        normalisation: mean and standard deviation that `predict` normalises images by. "dataset"
            are monodepth2's constants, md4all's default; md4all also has constants for single data
            sets and times of day, and "image" for each image's own. Weights do not show which they
            were trained with: md4all uses the constants for day and night, and "image" if the time
            of day is unknown.
        input_size: (height, width) in pixels that `predict` resizes images to.
        decoder_features: channels of the decoder levels, fine to coarse.
    """

    name: Literal["monodepth2"] = "monodepth2"
    min_depth: float = 0.1
    max_depth: float | None = 80.0
    normalisation: Normalisation = "dataset"
    input_size: tuple[int, int] = (320, 576)
    decoder_features: tuple[int, ...] = (16, 32, 64, 128, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_depth is None or not 0 < self.min_depth < self.max_depth:
            raise ValueError(
                f"min_depth {self.min_depth} and max_depth {self.max_depth} must be numbers with 0 "
                "< min_depth < max_depth"
            )
        if self.encoder.reductions != (2, 4, 8, 16, 32):
            raise ValueError(
                f"the encoder's maps have strides {self.encoder.reductions}; the decoder needs (2, "
                "4, 8, 16, 32): set stem_features=True"
            )
        if len(self.decoder_features) != 5 or min(self.decoder_features) < 1:
            raise ValueError(
                f"decoder_features {self.decoder_features} must be five positive numbers"
            )
        if min(self.input_size) < 32 or any(side % 32 for side in self.input_size):
            raise ValueError(f"input_size {self.input_size} must be multiples of 32")

    @property
    def input_spec(self) -> InputSpec:
        mean, std = _STATISTICS[self.normalisation]
        return replace(INPUT, size=self.input_size, mean=(mean,) * 3, std=(std,) * 3)


def _variant(encoder: str) -> Config:
    config = replace(encoder_variant("torchvision_resnet", encoder), stem_features=True)
    return Config(encoder=config)


VARIANTS = Variants({"res18": lambda: _variant("18"), "res50": lambda: _variant("50")})


class Monodepth2(nn.Module, PredictsScales):
    """The network. Images are normalised by the config's `input_spec`; depth is float32.

    Attributes: config: the network's config.
        dtype: type used by convolutions; parameters, normalisation statistics and the result are
        float32. frozen: parts ("encoder", "decoder") that are not trained: during training too,
        they run as in inference.
    """

    num_scales: ClassVar[int] = _SCALES

    config: Config
    dtype: Any = jnp.float32
    frozen: tuple[str, ...] = ()

    def setup(self) -> None:
        config = self.config
        encoder = registry.module("encoder", config.encoder.name)
        self.encoder = encoder.Encoder(config.encoder, dtype=self.dtype)
        self.decoder = Decoder(config.decoder_features, self.dtype)

    def __call__(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> Float[Array, "b h w 1"]:
        """Normalised image to depth of the same size, from `min_depth` to `max_depth`.

        Raises:
            ValueError: if a side is not a multiple of 32.
        """
        return 1 / self.inverse_depths(image, train)[0]

    def inverse_depths(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> tuple[Float[Array, "b _ _ 1"], ...]:
        """1 / depth at 1, 1/2, 1/4 and 1/8 of the image's size.

        It is linear in the decoder's disparity (equation 5 of the paper's appendix); md4all's loss
        compares it between student and teacher.
        """
        height, width = image.shape[1:3]
        if height % INPUT.multiple or width % INPUT.multiple:
            raise ValueError(
                f"the image has {height}x{width} pixels, but both sides must be multiples of "
                f"{INPUT.multiple}: resize it, as `predict` does"
            )
        image = jnp.asarray(image)
        if self.config.normalisation == "image":
            # Per image. The authors' code pools over the batch, but gets one image at a time.
            mean = image.mean((1, 2, 3), keepdims=True)
            deviation = image.std((1, 2, 3), ddof=1, keepdims=True)
            image = (image - mean) / jnp.where(deviation > 0, deviation, 1.0)  # 0: a black frame
        features = self.encoder(image, train and "encoder" not in self.frozen)
        # Configs of this network always have a max_depth.
        nearest, farthest = 1 / self.config.min_depth, 1 / cast(float, self.config.max_depth)
        return tuple(
            farthest + (nearest - farthest) * disparity for disparity in self.decoder(features)
        )

    def init_variables(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Freshly initialised {"params", "batch_stats"}; use `jax.eval_shape` for shapes only."""
        side = 2 * max(self.config.encoder.reductions)
        return dict(self.init(key, jnp.zeros((1, side, side, 3))))


class Decoder(nn.Module):
    """Encoder maps to disparities between 0 and 1 at the four finest scales, finest first."""

    features: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(
        self, features: tuple[Float[Array, "b _ _ _"], ...]
    ) -> tuple[Float[Array, "b _ _ 1"], ...]:
        disparities: list[Array] = []
        hidden = features[-1]
        for level in reversed(range(len(self.features))):
            channels = self.features[level]
            hidden = self._convolve(hidden, channels, f"level{level}_before")
            hidden = hidden.repeat(2, 1).repeat(2, 2)
            if level > 0:
                hidden = jnp.concatenate([hidden, features[level - 1]], -1)
            hidden = self._convolve(hidden, channels, f"level{level}_after")
            if level < _SCALES:
                conv = Conv(1, 3, padding=0, dtype=self.dtype, name=f"disparity{level}")
                disparity = conv(_reflected(hidden)).astype(jnp.float32)
                disparities.insert(0, jax.nn.sigmoid(disparity))
        return tuple(disparities)

    def _convolve(self, hidden: Array, channels: int, name: str) -> Array:
        conv = Conv(channels, 3, padding=0, dtype=self.dtype, name=name)
        return jax.nn.elu(conv(_reflected(hidden)))


def _reflected(features: Array) -> Array:
    """Reflection-pads by one row or column on each side."""
    return jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")


def build(config: Config, dtype: Any = jnp.float32, frozen: tuple[str, ...] = ()) -> Monodepth2:
    """The module for a config; see `Monodepth2` for `dtype` and `frozen`."""
    return Monodepth2(config, dtype, frozen)


# The network's name prefixes in md4all, in its Lightning files, and in monodepth2's two files.
_ENCODER = r"(?:encoder\.encoder\.|depth_model\.encoder\.encoder\.|encoder\.)"
_DECODER = r"(?:decoder\.decoder\.|depth_model\.decoder\.decoder\.|decoder\.)"
_CLASSES = 1000  # of the encoder's classifier, which is never used


def rules(config: Config) -> Rules:
    """The conversion table for md4all's names; also reads its files' and monodepth2's names."""
    stages = [rf"{_ENCODER}layer{stage + 1}" for stage in range(len(config.encoder.depths))]
    encoder = torchvision_resnet.rules_named(f"{_ENCODER}conv1", f"{_ENCODER}bn1", stages)
    rows = [*prefix(encoder, "", "encoder")]
    index = 0
    for level in reversed(range(len(config.decoder_features))):
        for step in ("before", "after"):
            rows += conv_rules(rf"{_DECODER}{index}\.conv\.conv", f"decoder/level{level}_{step}")
            index += 1
    for scale in range(_SCALES):
        rows += conv_rules(rf"{_DECODER}{index + scale}\.conv", f"decoder/disparity{scale}")
    reason = "the classifier, which is not part of the encoder"
    weight = (_CLASSES, config.encoder.channels[-1])
    rows.append(Constant(r"encoder\.encoder\.fc\.weight", reason, _zeros(weight)))
    rows.append(Constant(r"encoder\.encoder\.fc\.bias", reason, _zeros((_CLASSES,))))
    rows.append(Skip(r"(?:depth_model\.encoder\.encoder|encoder)\.fc\..+", reason))
    rows.append(Skip(r"pose_model\..+", "the ego-motion network, used only in training"))
    rows.append(Skip(r"loss\..+", "the teacher used in training"))
    return tuple(rows)


def _zeros(shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    return lambda: np.zeros(shape, np.float32)


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from the names and shapes of a state dict; None for an unknown family.

    Weights determine neither the depth range nor the image size: with md4all's names, those for
    nuScenes are assumed, with monodepth2's names, monodepth2's.

    Raises:
        ValueError: if the family is known, but an entry that determines the architecture is
            missing.
    """
    if "monodepth2" not in registry.matching("network", shapes):
        return None
    own = "encoder.conv1.weight" in shapes
    lightning = "depth_model.encoder.encoder.conv1.weight" in shapes
    root = "" if own else "depth_model.encoder." if lightning else "encoder."
    below = f"{root}encoder."
    encoder = torchvision_resnet.infer(
        {name.removeprefix(below): s for name, s in shapes.items() if name.startswith(below)}
    )
    if encoder is None:
        return None
    below = f"{root.replace('encoder.', 'decoder.')}decoder."
    features = tuple(side(shapes, f"{below}{2 * k}.conv.conv.weight") for k in range(5))
    config = Config(
        encoder=replace(encoder, stem_features=True), decoder_features=tuple(reversed(features))
    )
    if own:
        return replace(config, max_depth=_OWN_MAX_DEPTH, input_size=_OWN_INPUT_SIZE)
    return config


_LARGEST_ARGUMENT = 1e6


def with_arguments(config: Config, arguments: Mapping[str, Any]) -> Config:
    """The config updated from what monodepth2's files, and ours, hold besides weights.

    Raises:
        ValueError: for an invalid value.
    """
    found: dict[str, Any] = {}
    for name in ("min_depth", "max_depth", "height", "width"):
        if arguments.get(name) is None:
            continue
        number = arguments[name]
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise ValueError(f"{name} is a {type(number).__name__}; it must be a number")
        if not abs(number) < _LARGEST_ARGUMENT:
            raise ValueError(f"{name} must be below {_LARGEST_ARGUMENT:.0e}")
        found[name] = number
    height = int(found.pop("height", config.input_size[0]))
    width = int(found.pop("width", config.input_size[1]))
    normalisation = arguments.get("normalisation", config.normalisation)
    if normalisation not in tuple(_STATISTICS):
        raise ValueError(f"normalisation must be one of {', '.join(_STATISTICS)}")
    return replace(config, input_size=(height, width), normalisation=normalisation, **found)


def arguments(config: Config) -> dict[str, Any]:
    """What `with_arguments` reads: the config fields that weights do not determine."""
    height, width = config.input_size
    return {
        "min_depth": config.min_depth,
        "max_depth": config.max_depth,
        "height": height,
        "width": width,
        "normalisation": config.normalisation,
    }
