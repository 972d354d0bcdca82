"""Monodepth2 (Godard et al. 2019, arXiv:1806.01260, section 4), its depth network as in md4all.

A ResNet and a decoder of nearest-neighbour upsampling with skips, which gives disparity between 0
and 1 at four scales. Disparity represents a range of depths. md4all (Gasperini et al. 2023,
arXiv:2308.09711) learns its scale from the car's speed, so that depth is in metres; monodepth2's
own weights are right up to a factor (of 5.4 where they were trained on stereo pairs).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

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

# Mean and standard deviation, of all channels alike, by `Config.normalisation`. For "image" they
# are the image's own, which the network computes.
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
# md4all's files, and the folders of monodepth2's.
FILES: Mapping[str, Mapping[str, Any]] = {
    r"(baseline|md4all\w*)_nuscenes": {},
    r"(baseline|md4all\w*)_robotcar": {"input_size": (320, 544)},
    r"(mono|stereo|mono\+stereo)(_no_pt)?_\d+x\d+": {},
}
UNTOLD: Mapping[str, tuple[Any, ...]] = {}
TRANSFORMERS = None

_SCALES = 4
_OWN_MAX_DEPTH, _OWN_INPUT_SIZE = 100.0, (192, 640)  # of monodepth2's own weights


@dataclass(frozen=True, kw_only=True)
class Config(NetworkConfig, HasEncoder, Published):
    """A network of monodepth2's kind.

    Attributes:
        encoder: see `HasEncoder`; its first map has a stride of 2.
        min_depth, max_depth: metres, what disparities of 1 and 0 stand for.
        normalisation: what `predict` subtracts from images and divides them by. "dataset" are
            monodepth2's constants and md4all's default; its others are for single data sets and
            times of day, or the mean and deviation of each image itself. Weights do not show which
            they were trained with: md4all evaluates by day and night, and uses the image's own
            where that is unknown.
        input_size: (height, width) in pixels that `predict` resizes images to.
        decoder_features: channels of the decoder's levels, fine to coarse.
    """

    name: Literal["monodepth2"] = "monodepth2"
    min_depth: float = 0.1
    max_depth: float | None = 80.0
    normalisation: Normalisation = "dataset"
    input_size: tuple[int, int] = (320, 576)
    decoder_features: tuple[int, ...] = (16, 32, 64, 128, 256)

    def __post_init__(self):
        super().__post_init__()
        if self.max_depth is None or not 0 < self.min_depth < self.max_depth:
            raise ValueError(
                f"min_depth {self.min_depth} and max_depth {self.max_depth} must be numbers, "
                "positive and rising"
            )
        if self.encoder.reductions != (2, 4, 8, 16, 32):
            raise ValueError(
                f"the encoder's maps have strides of {self.encoder.reductions}; the decoder needs "
                "(2, 4, 8, 16, 32): stem_features=True"
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
    """The network; images come normalised by the config's `input_spec`, depth is float32.

    Attributes:
        config: of the network.
        dtype: of the convolutions; parameters, norms' statistics and the result are float32.
        frozen: parts ("encoder", "decoder") that are not trained: they work as in inference in
            training too.
    """

    num_scales: ClassVar[int] = _SCALES

    config: Config
    dtype: Any = jnp.float32
    frozen: tuple[str, ...] = ()

    def setup(self):
        config = self.config
        encoder = registry.module("encoder", config.encoder.name)
        self.encoder = encoder.Encoder(config.encoder, dtype=self.dtype)
        self.decoder = Decoder(config.decoder_features, self.dtype)

    def __call__(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> Float[Array, "b h w 1"]:
        """Normalised image to depth of the same size, `min_depth` to `max_depth`.

        Raises:
            ValueError: for a side that is not a multiple of 32.
        """
        return 1 / self.inverse_depths(image, train)[0]

    def inverse_depths(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> tuple[Float[Array, "b _ _ 1"], ...]:
        """1 / depth at the image's size, a half, a quarter and an eighth of it.

        They are linear in the disparities of the decoder (equation 5 of its appendix); md4all's
        loss compares those of a student and its teacher.
        """
        height, width = image.shape[1:3]
        if height % INPUT.multiple or width % INPUT.multiple:
            raise ValueError(
                f"an image of {height}x{width} pixels: both sides must be multiples of "
                f"{INPUT.multiple}, as `predict` makes them"
            )
        image = jnp.asarray(image)
        if self.config.normalisation == "image":
            # Each image by its own. The authors' code, which gets one at a time, pools the batch.
            mean = image.mean((1, 2, 3), keepdims=True)
            image = (image - mean) / image.std((1, 2, 3), ddof=1, keepdims=True)
        features = self.encoder(image, train and "encoder" not in self.frozen)
        nearest, farthest = 1 / self.config.min_depth, 1 / self.config.max_depth
        return tuple(
            farthest + (nearest - farthest) * disparity for disparity in self.decoder(features)
        )

    def init_variables(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Freshly initialised {"params", "batch_stats"}; trace it for shapes alone."""
        side = 2 * max(self.config.encoder.reductions)
        return self.init(key, jnp.zeros((1, side, side, 3)))


class Decoder(nn.Module):
    """Maps of the encoder to disparities between 0 and 1, of the four finest scales, fine first."""

    features: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(
        self, features: tuple[Float[Array, "b _ _ _"], ...]
    ) -> tuple[Float[Array, "b _ _ 1"], ...]:
        disparities = []
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
    """Pads one row and column on each side by reflection."""
    return jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")


def build(config: Config, dtype: Any = jnp.float32, frozen: tuple[str, ...] = ()) -> Monodepth2:
    """The module of a config; see `Monodepth2` for `dtype` and `frozen`."""
    return Monodepth2(config, dtype, frozen)


# The network's names in md4all, in its Lightning files, and in monodepth2's two files.
_ENCODER = r"(?:encoder\.encoder\.|depth_model\.encoder\.encoder\.|encoder\.)"
_DECODER = r"(?:decoder\.decoder\.|depth_model\.decoder\.decoder\.|decoder\.)"
_CLASSES = 1000  # of the encoder's classifier, which is never run


def rules(config: Config) -> Rules:
    """The table of md4all's names; those of its files and of monodepth2's are read too."""
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
    rows.append(Skip(r"pose_model\..+", "the network of the camera's motion, for training"))
    rows.append(Skip(r"loss\..+", "the teacher that the network was trained by"))
    return tuple(rows)


def _zeros(shape: tuple[int, ...]):
    return lambda: np.zeros(shape, np.float32)


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config of a state dict with these names and shapes; None if it is of no known family.

    Weights determine neither the range of depths nor the size of images: here md4all's for nuScenes
    under its names, monodepth2's under its own.

    Raises:
        ValueError: if it is, but an entry that determines the architecture is missing.
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
    """The config with the values that monodepth2's files, and ours, have besides the weights.

    Raises:
        ValueError: for a value that a config cannot have.
    """
    found = {}
    for name in ("min_depth", "max_depth", "height", "width"):
        if arguments.get(name) is None:
            continue
        number = arguments[name]
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise ValueError(f"{name} is a {type(number).__name__}; it must be a number")
        if not abs(number) < _LARGEST_ARGUMENT:
            raise ValueError(f"{name} is not below {_LARGEST_ARGUMENT:.0e}")
        found[name] = number
    size = int(found.pop("height", config.input_size[0]))
    size = (size, int(found.pop("width", config.input_size[1])))
    normalisation = arguments.get("normalisation", config.normalisation)
    if normalisation not in tuple(_STATISTICS):
        raise ValueError(f"normalisation is not one of {', '.join(_STATISTICS)}")
    return replace(config, input_size=size, normalisation=normalisation, **found)


def arguments(config: Config) -> dict[str, Any]:
    """What `with_arguments` reads: of a config, the fields that weights do not tell."""
    height, width = config.input_size
    return {
        "min_depth": config.min_depth,
        "max_depth": config.max_depth,
        "height": height,
        "width": width,
        "normalisation": config.normalisation,
    }
