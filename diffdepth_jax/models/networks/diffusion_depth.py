"""DiffusionDepth (Duan et al. 2023, arXiv:2303.05021): depth by denoising a latent depth map.

An encoder and a neck turn the image into a condition; DDIM denoises a latent under that condition,
starting from noise; a small decoder turns the latent into depth in metres. All networks of the
release (github.com/duanyiqun/DiffusionDepth) are configurations of this one: see `VARIANTS`.
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffdepth_jax import registry
from diffdepth_jax.errors import WeightsError
from diffdepth_jax.models import codec, denoiser, necks
from diffdepth_jax.models.codec import Codec, CodecConfig
from diffdepth_jax.models.denoiser import Denoiser, DenoiserConfig, SamplerForm, sampler_form
from diffdepth_jax.models.encoders.encoder import multiple
from diffdepth_jax.models.necks import Neck, NeckConfig
from diffdepth_jax.models.networks.network import (
    HasEncoder,
    NetworkConfig,
    Published,
    Recalibrates,
    Variants,
    encoder_variant,
)
from diffdepth_jax.models.tables import below, width
from diffdepth_jax.ops.composed_conv import KERNEL_SIZE
from diffdepth_jax.ops.conv import Gradient
from diffdepth_jax.ops.diffusion import (
    BetaSchedule,
    DrawnSteps,
    PredictionType,
    Schedule,
    TimestepSpacing,
    ddim_sample,
    inference_timesteps,
)
from diffdepth_jax.ops.image import pad_to_multiple, size_of
from diffdepth_jax.ops.remat import Remat
from diffdepth_jax.typing import InputSpec
from diffdepth_jax.weights.rules import Rules, prefix

OUTPUT = "metric_depth"
INPUT = InputSpec()
# The release's files have no fixed names.
FILES: Mapping[str, Mapping[str, Any]] = {}
UNDETERMINED: Mapping[str, tuple[Any, ...]] = {}
TRANSFORMERS = None

# A hundred times the usual number. Schedules are arrays of this length, and the number may come
# from an untrusted file.
MAX_TRAIN_TIMESTEPS = 100_000


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise schedule and the sampler; `ops.diffusion` explains the values.

    Attributes:
        num_train_timesteps, beta_schedule, beta_start, beta_end: see `Schedule.create`.
        prediction_type, clip_sample, eta: see `ddim_step`.
        num_inference_steps: default number of denoising steps.
        timestep_spacing: see `inference_timesteps`; "leading" as published. Use another for few
            steps.
    """

    num_train_timesteps: int = 1000
    beta_schedule: BetaSchedule = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction_type: PredictionType = "epsilon"
    num_inference_steps: int = 20
    eta: float = 0.0
    timestep_spacing: TimestepSpacing = "leading"
    clip_sample: float | None = None

    def __post_init__(self) -> None:
        if self.num_train_timesteps > MAX_TRAIN_TIMESTEPS:  # before allocating the schedule
            raise ValueError(
                f"num_train_timesteps is {self.num_train_timesteps}; it must be at most "
                f"{MAX_TRAIN_TIMESTEPS}"
            )
        inference_timesteps(
            self.schedule.num_train_timesteps, self.num_inference_steps, self.timestep_spacing
        )
        if self.clip_sample is not None and not self.clip_sample > 0:
            raise ValueError(
                f"clip_sample is {self.clip_sample}; it must be positive, or None for no clipping"
            )
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta is {self.eta}; it must be between 0 and 1")

    @property
    def schedule(self) -> Schedule:
        return Schedule.create(
            self.num_train_timesteps, self.beta_start, self.beta_end, self.beta_schedule
        )


@dataclass(frozen=True, kw_only=True)
class Config(NetworkConfig, HasEncoder, Published):
    """A DiffusionDepth network.

    Attributes:
        encoder, max_depth: see `HasEncoder` and `NetworkConfig`.
        neck, codec, denoiser, diffusion: configs of the other parts.
        remat: which parts of the sampler's steps are recomputed in the backward pass, see
            `ops.remat`. (Older checkpoints have True for "full" and False for "none".)
        conv_gradient: how the denoiser's convolutions and group norms are differentiated, see
            `ops.conv.conv3x3` and `ops.group_norm`.
        sampler_form: how the sampler's steps are computed, see `denoiser.sampler_form`; results
            agree up to rounding.
    """

    name: Literal["diffusion_depth"] = "diffusion_depth"
    neck: NeckConfig = field(default_factory=NeckConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    remat: Literal[Remat, True, False] = "full"
    conv_gradient: Gradient = "auto"
    sampler_form: SamplerForm = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        necks.check(self.neck, self.encoder.reductions)
        if isinstance(self.remat, bool):
            object.__setattr__(self, "remat", "full" if self.remat else "none")
        if self.neck.features % self.denoiser.num_groups:
            raise ValueError(
                f"neck.features {self.neck.features} must be divisible by denoiser.num_groups "
                f"{self.denoiser.num_groups}"
            )
        official = self.denoiser.variant == "official"
        if official and self.codec.latent_channels % self.denoiser.num_groups:
            raise ValueError(
                f"codec.latent_channels {self.codec.latent_channels} must be divisible by "
                f"denoiser.num_groups {self.denoiser.num_groups}"
            )
        if not official and self.neck.features % self.denoiser.num_heads:
            raise ValueError(
                f"neck.features {self.neck.features} must be divisible by denoiser.num_heads "
                f"{self.denoiser.num_heads}"
            )
        if self.sampler_form == "composed" and not self.denoiser.composes:
            raise ValueError(
                "sampler_form 'composed' needs a denoiser with variant='official' and fuse=True: "
                "use 'auto' or 'plain'"
            )
        if self.diffusion.num_train_timesteps > self.denoiser.time_table:
            raise ValueError(
                f"diffusion.num_train_timesteps {self.diffusion.num_train_timesteps} must not "
                f"exceed denoiser.time_table {self.denoiser.time_table}"
            )

    @property
    def input_spec(self) -> InputSpec:
        return replace(INPUT, multiple=math.lcm(INPUT.multiple, multiple(self.encoder)))


def _variant(encoder: str, variant: str, *, hahi: bool = False, fuse: bool = False) -> Config:
    return Config(
        encoder=encoder_variant(encoder, variant),
        neck=NeckConfig(hahi=hahi),
        denoiser=DenoiserConfig(fuse=fuse),
    )


VARIANTS = Variants(
    {
        "res18": lambda: _variant("resnet", "18"),
        "res50": lambda: _variant("resnet", "50"),
        "res101": lambda: _variant("resnet", "101"),
        "swin_large": lambda: _variant("swin", "large", fuse=True),
        "swin_large_hahi": lambda: _variant("swin", "large", hahi=True, fuse=True),
        "mpvit_small": lambda: _variant("mpvit", "small", hahi=True, fuse=True),
    }
)


class DiffusionDepth(nn.Module, Recalibrates):
    """The network. Images are normalised by `INPUT`; depth is in metres, float32.

    Attributes:
        config: the network's config.
        dtype: type used by convolutions and matrix products; parameters, normalisation statistics,
            the latent during sampling and all results are float32.
        frozen: parts ("encoder", "neck", "codec", "denoiser") that are not trained: during training
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
        self.codec = Codec(config.codec, dtype=self.dtype)
        self.denoiser = Denoiser(
            config.denoiser,
            features=config.neck.features,
            latent_channels=config.codec.latent_channels,
            dtype=self.dtype,
            gradient=config.conv_gradient,
        )

    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        noise: Float[Array, "b h2 w2 d"],
        train: bool = False,
        num_inference_steps: int | None = None,
        key: Key[Array, "*keys"] | None = None,
    ) -> Float[Array, "b h w 1"]:
        """Image to depth of the same size, for any size.

        Args:
            image: normalised RGB.
            noise: x_T, standard normal, of `latent_shape(image.shape)`.
            train: use the batch's statistics and drop path.
            num_inference_steps, key: see `sample`.
        """
        expected = self.latent_shape(image.shape)
        if noise.shape != expected:
            raise ValueError(
                f"noise has shape {noise.shape}; for an image of shape {image.shape} it must be "
                f"{expected}"
            )
        depth = self.depth_from_noise(
            self.condition(image, train),
            noise,
            size_of(image),
            train,
            num_inference_steps,
            key=key,
        )
        if self.is_initializing():  # the only part that inference does not use
            self.encode_depth(depth)
        return depth

    def condition(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> Float[Array, "b h2 w2 c"]:
        """`encode_image` for images of any size, as input to `depth_from_noise`."""
        # If the codec halves an odd side, its decoder returns one pixel too many.
        return self.encode_image(pad_to_multiple(image, self.config.codec.factor), train)

    def depth_from_noise(
        self,
        condition: Float[Array, "b h2 w2 c"],
        noise: Float[Array, "b h3 w3 d"],
        size: tuple[int, int],
        train: bool = False,
        num_inference_steps: int | None = None,
        *,
        key: Key[Array, "*keys"] | None = None,
    ) -> Float[Array, "b h w 1"]:
        """Noise to depth for an image of `size`, given its `condition`; otherwise like the call."""
        latent = self.sample(condition, noise, num_inference_steps, key=key)
        depth = self.decode_latent(cast(Array, latent), train)  # not a trajectory
        return depth[:, : size[0], : size[1]]

    def encode_image(
        self, image: Float[Array, "b h w 3"], train: bool = False
    ) -> Float[Array, "b h2 w2 c"]:
        """Normalised image to condition, at the stride of the neck's finest features."""
        features = self.encoder(jnp.asarray(image), self._trains("encoder", train))
        condition = self.neck(features, self._trains("neck", train)).astype(jnp.float32)
        reductions = self.config.encoder.reductions
        return necks.within_image(condition, self.config.neck, reductions, size_of(image))

    def sample(
        self,
        condition: Float[Array, "b h2 w2 c"],
        noise: Float[Array, "b h w d"],
        num_inference_steps: int | DrawnSteps | None = None,
        *,
        key: Key[Array, "*keys"] | None = None,
        gradient_steps: int | None = None,
        return_trajectory: bool = False,
    ) -> Float[Array, "b h w d"] | tuple[Float[Array, "b h w d"], Float[Array, "n b h w d"]]:
        """Denoises x_T to x_0 under a condition.

        Args:
            condition: what `encode_image` returned.
            noise: x_T.
            num_inference_steps: None for the config's number; training may pass a random one, see
                `ops.diffusion.DrawnSteps`.
            key: for the noise of the steps, see `ops.diffusion.ddim_step`; required if and only if
                the config's eta is not 0.
            gradient_steps: see `ops.diffusion.ddim_sample`.
            return_trajectory: also return the latent after every step.
        """
        config = self.config.diffusion
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        prepared = self.denoiser.prepare(jnp.asarray(condition), size_of(noise))
        if self.is_initializing():
            self.denoiser.denoise(prepared, noise, jnp.zeros(noise.shape[0], jnp.int32))
        # Inside the scan the denoiser is a pure function, not a part of this module.
        module, variables = self.denoiser.unbind()

        counts = steps.counts if isinstance(steps, DrawnSteps) else (steps,)
        form = sampler_form(self.config.sampler_form, module, size_of(noise), max(counts))
        composed = None
        if form == "composed":
            composed = module.apply(variables, size_of(noise), method="compose")

        def denoise(latent: Array, timestep: Array) -> Array:
            timesteps = jnp.broadcast_to(timestep, latent.shape[:1])
            output = module.apply(
                variables, prepared, latent, timesteps, composed, method="denoise"
            )
            return cast(Array, output)

        return ddim_sample(
            config.schedule,
            denoise,
            jnp.asarray(noise, jnp.float32),
            steps,
            spacing=config.timestep_spacing,
            prediction_type=config.prediction_type,
            clip_sample=config.clip_sample,
            eta=config.eta,
            key=key,
            remat=cast(Remat, self.config.remat),  # `Config` converts bools
            gradient_steps=gradient_steps,
            return_trajectory=return_trajectory,
        )

    def predict_noise(
        self,
        condition: Float[Array, "b h2 w2 c"],
        latent: Float[Array, "b h w d"],
        timesteps: Int[Array, " b"],
    ) -> Float[Array, "b h w d"]:
        """The denoiser's output for noisy latents, each with its own timestep."""
        arrays = (jnp.asarray(array) for array in (condition, latent, timesteps))
        return self.denoiser(*arrays)

    def decode_latent(
        self, latent: Float[Array, "b h2 w2 d"], train: bool = False
    ) -> Float[Array, "b h w 1"]:
        """Latent to depth in metres, at `codec.factor` times the latent's size, not clipped."""
        return self.codec.decode(jnp.asarray(latent), self._trains("codec", train))

    def encode_depth(
        self, depth: Float[Array, "b h w 1"], train: bool = False
    ) -> Float[Array, "b h2 w2 d"]:
        """Depth in metres (0 = no measurement) to latent. Only needed in training."""
        return self.codec.encode(jnp.asarray(depth), self._trains("codec", train))

    @property
    def num_inference_steps(self) -> int:
        return self.config.diffusion.num_inference_steps

    @property
    def num_train_timesteps(self) -> int:
        return self.config.diffusion.num_train_timesteps

    def timesteps(self, num_inference_steps: int | None = None) -> np.ndarray:
        """Timesteps of the sampler, int32 [n], decreasing; see `inference_timesteps`."""
        return inference_timesteps(
            self.num_train_timesteps,
            num_inference_steps or self.num_inference_steps,
            self.config.diffusion.timestep_spacing,
        )

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Shape of the noise for images of shape [b, h, w, 3]."""
        batch, height, width, _ = image_shape
        size = self.config.codec.latent_size(height, width)
        return (batch, *size, self.config.codec.latent_channels)

    def init_variables(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Freshly initialised {"params", "batch_stats"}; use `jax.eval_shape` for shapes only."""
        unit = 2 * max(self.config.encoder.reductions)
        # A composed sampler needs a latent of at least its kernel's size.
        side = unit * -(-KERNEL_SIZE * self.config.codec.factor // unit)
        image = jnp.zeros((1, side, side, 3))
        noise = jnp.zeros(self.latent_shape(image.shape))
        return dict(self.init(key, image, noise, num_inference_steps=1, key=key))

    def _trains(self, part: str, train: bool) -> bool:
        return train and part not in self.frozen


def build(config: Config, dtype: Any = jnp.float32, frozen: tuple[str, ...] = ()) -> DiffusionDepth:
    """The module for a config; see `DiffusionDepth` for `dtype` and `frozen`."""
    return DiffusionDepth(config, dtype, frozen)


def rules(config: Config) -> Rules:
    """The conversion table for the release's names."""
    encoder = registry.module("encoder", config.encoder.name).rules(config.encoder)
    levels = len(config.encoder.channels)
    return (
        *prefix(encoder, "depth_backbone.", "encoder"),
        *prefix(necks.rules(config.neck, levels), "depth_head.", "neck"),
        *prefix(codec.rules(config.codec), "depth_head.depth_transform.", "codec"),
        *prefix(denoiser.rules(), "depth_head.model.", "denoiser"),
    )


def infer(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The config inferred from the names and shapes of a state dict; None for an unknown family.

    The structure follows from the names. Each width is the most common one among the entries that
    depend on it, so a single entry of the wrong shape is reported as such when the weights are
    converted. Weights determine neither the schedule nor the number of steps; the release's are
    assumed.
    """
    backbone = below(shapes, "depth_backbone.")
    head = below(shapes, "depth_head.")
    encoder = None
    for name in registry.matching("encoder", backbone):
        encoder = encoder or registry.module("encoder", name).infer(backbone)
    factor = _codec_factor(head)
    features = width(head, r"conv_(lateral|up)\.\d\.1\.\w+")
    latent_channels = width(head, r"model\.pred\.[34]\.\w+")
    hidden_features = width(head, r"model\.(noise_embedding|pred)\.[01]\.\w+")
    time_table = width(head, r"model\.time_embedding\.weight")
    if encoder is None or factor is None or features is None or latent_channels is None:
        return None
    if hidden_features is None or time_table is None:
        return None
    hahi_features = width(head, r"hahineck\.(trans_proj|conv_proj)\.\d\.bn\.\w+")
    neck = NeckConfig(features)
    if hahi_features is not None:
        neck = NeckConfig(features, hahi=True, hahi_features=hahi_features)
    return Config(
        encoder=encoder,
        neck=neck,
        codec=CodecConfig(
            factor=factor,
            latent_channels=latent_channels,
            pointwise="depth_transform.conv_transform.0.weight" in head,
        ),
        denoiser=DenoiserConfig(
            hidden_features=hidden_features,
            time_table=max(time_table, DiffusionConfig.num_train_timesteps),
            fuse="model.upsample_fuse.convA.conv.weight" in head,
        ),
    )


_LARGEST_ARGUMENT = 1e9


def with_arguments(config: Config, arguments: Mapping[str, Any]) -> Config:
    """The config updated from an official checkpoint's `args`: number of steps and `max_depth`.

    Raises:
        WeightsError: if one of them is not a valid number.
    """
    names = ("inference_steps", "num_train_timesteps", "max_depth")
    found = {name: arguments[name] for name in names if arguments.get(name) is not None}
    for name, value in found.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # Converted to float, an integer with hundreds of digits is infinite or an error.
        if not number or not abs(value) < _LARGEST_ARGUMENT:
            raise WeightsError(
                f"args.{name} of the checkpoint is {reprlib.repr(value)}; it must be a number "
                f"below {_LARGEST_ARGUMENT:.0e}"
            )
    diffusion = replace(
        config.diffusion,
        num_inference_steps=int(found.get("inference_steps", config.diffusion.num_inference_steps)),
        num_train_timesteps=int(
            found.get("num_train_timesteps", config.diffusion.num_train_timesteps)
        ),
    )
    max_depth = float(found["max_depth"]) if "max_depth" in found else config.max_depth
    return replace(config, diffusion=diffusion, max_depth=max_depth)


def arguments(config: Config) -> dict[str, Any]:
    """What `with_arguments` reads: the fields that weights do not determine."""
    return {
        "inference_steps": config.diffusion.num_inference_steps,
        "num_train_timesteps": config.diffusion.num_train_timesteps,
        "max_depth": config.max_depth,
    }


def _codec_factor(head: Mapping[str, tuple[int, ...]]) -> Literal[1, 2, 4] | None:
    """The codecs differ in the index of the last layer in the decoder's `torch.nn.Sequential`."""
    places: dict[Literal[1, 2, 4], str] = {1: "1.1.weight", 2: "3.0.weight", 4: "4.0.weight"}
    found = [
        factor
        for factor, place in places.items()
        if f"depth_transform.conv_inv_transform.{place}" in head
    ]
    return found[0] if len(found) == 1 else None
