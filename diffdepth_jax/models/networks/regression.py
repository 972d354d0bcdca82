"""Plain regression with DiffusionDepth's encoder, neck and decoder: the baseline without diffusion.

Two convolutions, like the denoiser's last two, replace the sampler: they map the condition to the
latent that is decoded. With the same data, losses and steps, this is the result that diffusion has
to beat. The network is not published, so its weights have no PyTorch names.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffdepth_jax import registry
from diffdepth_jax.models import necks
from diffdepth_jax.models.codec import Codec, CodecConfig
from diffdepth_jax.models.encoders.encoder import multiple
from diffdepth_jax.models.layers import Conv, GroupNorm
from diffdepth_jax.models.necks import Neck, NeckConfig
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.models.networks.network import HasEncoder, NetworkConfig, Variants
from diffdepth_jax.ops.image import pad_to_multiple, resize_bilinear, size_of
from diffdepth_jax.typing import InputSpec
from diffdepth_jax.weights.rules import Rules

OUTPUT = "metric_depth"
INPUT = InputSpec()
FILES: Mapping[str, Mapping[str, Any]] = {}
UNDETERMINED: Mapping[str, tuple[Any, ...]] = {}
TRANSFORMERS = None


@dataclass(frozen=True, kw_only=True)
class Config(NetworkConfig, HasEncoder):
    """A regression network.

    Attributes:
        encoder, max_depth: see `HasEncoder` and `NetworkConfig`.
        neck, codec: as in DiffusionDepth; only the codec's decoder is used.
        hidden_features: channels between the two convolutions.
        num_groups: groups of the GroupNorm between them.
    """

    name: Literal["regression"] = "regression"
    neck: NeckConfig = field(default_factory=NeckConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    hidden_features: int = 64
    num_groups: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        necks.check(self.neck, self.encoder.reductions)
        if min(self.hidden_features, self.num_groups) < 1 or self.hidden_features % self.num_groups:
            raise ValueError(
                f"hidden_features {self.hidden_features} must be divisible by num_groups "
                f"{self.num_groups}"
            )

    @property
    def input_spec(self) -> InputSpec:
        return replace(INPUT, multiple=math.lcm(INPUT.multiple, multiple(self.encoder)))


def _baseline(method: diffusion_depth.Config) -> Config:
    """The baseline for a variant of DiffusionDepth."""
    return Config(
        encoder=method.encoder,
        neck=method.neck,
        codec=method.codec,
        hidden_features=method.denoiser.hidden_features,
    )


VARIANTS = Variants(
    {
        name: functools.partial(lambda name: _baseline(diffusion_depth.VARIANTS[name]), name)
        for name in diffusion_depth.VARIANTS
    }
)


class Regression(nn.Module):
    """The network. Images are normalised by `INPUT`; depth is in metres, float32.

    Attributes:
        config: the network's config.
        dtype: type used by convolutions and matrix products; parameters, normalisation statistics
            and the result are float32.
        frozen: parts ("encoder", "neck", "project", "codec") that are not trained: during training
            too, they run as in inference: with their running statistics and without drop path.
    """

    config: Config
    dtype: Any = jnp.float32
    frozen: tuple[str, ...] = ()

    def setup(self) -> None:
        config = self.config
        encoder = registry.module("encoder", config.encoder.name)
        self.encoder = encoder.Encoder(config.encoder, dtype=self.dtype)
        self.neck = Neck(config.neck, dtype=self.dtype)
        self.project = Projection(
            config.hidden_features, config.codec.latent_channels, config.num_groups, self.dtype
        )
        self.codec = Codec(config.codec, dtype=self.dtype)

    def __call__(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> Float[Array, "b h w 1"]:
        """Normalised image to depth of the same size, for any size; not clipped."""
        encoder, neck, codec = (
            train and part not in self.frozen for part in ("encoder", "neck", "codec")
        )
        height, width = image.shape[1:3]
        # As in DiffusionDepth: if the codec halves an odd side, its decoder returns an extra pixel.
        image = pad_to_multiple(jnp.asarray(image), self.config.codec.factor)
        condition = self.neck(self.encoder(image, encoder), neck)
        reductions = self.config.encoder.reductions
        condition = necks.within_image(condition, self.config.neck, reductions, size_of(image))
        latent = self.project(condition, self.config.codec.latent_size(height, width))
        return self.codec.decode(latent, codec)[:, :height, :width]

    def init_variables(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Freshly initialised {"params", "batch_stats"}; use `jax.eval_shape` for shapes only."""
        side = 2 * max(self.config.encoder.reductions)
        return dict(self.init(key, jnp.zeros((1, side, side, 3))))


class Projection(nn.Module):
    """Resizes the condition to the latent's size and maps it to the latent with two
    convolutions."""

    hidden_features: int
    latent_channels: int
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(
        self, condition: Float[Array, "b h2 w2 c"], size: tuple[int, int]
    ) -> Float[Array, "b h w d"]:
        hidden = resize_bilinear(condition, size)
        hidden = Conv(self.hidden_features, 3, dtype=self.dtype, name="conv0")(hidden)
        hidden = jax.nn.relu(GroupNorm(self.num_groups, name="norm")(hidden))
        return Conv(self.latent_channels, 3, dtype=self.dtype, name="conv1")(hidden)


def build(config: Config, dtype: Any = jnp.float32, frozen: tuple[str, ...] = ()) -> Regression:
    """The module for a config; see `Regression` for `dtype` and `frozen`."""
    return Regression(config, dtype, frozen)


def rules(config: Config) -> Rules:
    """An empty table: there are no published names."""
    del config
    return ()


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """None: there are no published weights for this network."""
    del shapes
    return None


def with_arguments(config: Config, arguments: Mapping[str, Any]) -> Config:
    """The unchanged config: no published checkpoint has arguments for it."""
    del arguments
    return config


def arguments(config: Config) -> dict[str, Any]:
    """Empty, see `with_arguments`."""
    del config
    return {}
