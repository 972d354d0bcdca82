"""Self-diffusion (DiffusionDepth, section 3.4): the model diffuses its own refined latent.

Sparse ground truth cannot be diffused: its latent says little about the pixels between the
measurements. So the whole sampler runs with gradients, its result x_0 is decoded and compared with
the ground truth where there is any, and the denoiser is trained on x_0 with noise added. Gradients
flow through x_0 there as well.

The DDIM loss stays near 1, which predicting nothing would give: it does not show whether the model
learns.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffdepth_jax.ops import losses, random
from diffdepth_jax.ops.diffusion import add_noise, posterior_mean_weight, training_target

# Depths up to here count as "not measured", as in the release.
MIN_DEPTH = 1e-4


@dataclass(frozen=True)
class SilogConfig:
    """Options of `ops.losses.silog`; the release's `Sig` is scale 2, ddof 1, reduction "batch"."""

    scale: float = 10.0
    variance_focus: float = 0.85
    offset: float = 1e-3
    ddof: Literal[0, 1] = 0
    reduction: Literal["image", "batch"] = "image"

    def __post_init__(self):
        if not (self.scale > 0 and 0 <= self.variance_focus <= 1 and self.offset > 0):
            raise ValueError(
                f"scale and offset must be positive, variance_focus between 0 and 1: {self}"
            )


@dataclass(frozen=True)
class Config:
    """Weights of the terms, each a mean over the batch's images, and what they mean.

    Attributes:
        l1, l2: absolute and squared error of depth in metres.
        silog: scale-invariant log error.
        latent: squared error between x_0 and the encoded ground truth.
        ddim: squared error of the predicted noise.
        max_depth: metres; prediction and ground truth are clamped to it in l1 and l2.
        silog_options: constants of the silog term.
        ddim_weighting: "noise" as the release; "posterior_mean" weights each image's error so
            that it becomes the paper's ||x_{t-1} - mu(x_t, t, c)||^2.
    """

    name: Literal["self_diffusion"] = "self_diffusion"
    l1: float = 1.0
    l2: float = 1.0
    silog: float = 0.0
    latent: float = 0.0
    ddim: float = 1.0
    max_depth: float = 88.0
    silog_options: SilogConfig = field(default_factory=SilogConfig)
    ddim_weighting: Literal["noise", "posterior_mean"] = "noise"

    def __post_init__(self):
        weights = {name: getattr(self, name) for name in ("l1", "l2", "silog", "latent", "ddim")}
        if min(weights.values()) < 0 or max(weights.values()) == 0:
            raise ValueError(f"weights must not be negative, nor all zero: {weights}")
        if not self.max_depth > MIN_DEPTH:
            raise ValueError(f"max_depth is {self.max_depth}; it must be positive")


VARIANTS = {
    # 1.0*L1 + 1.0*L2 + 1.0*DDIM, where the trainer divides all by the 2 images of each GPU, of
    # which the DDIM term is a mean already.
    "release": Config(ddim=0.5),
    # The terms of the paper's equation; it does not publish their weights.
    "paper": Config(l1=0.0, l2=0.0, silog=1.0, latent=1.0, ddim=1.0),
}


class Draws(NamedTuple):
    """All that is random in one step.

    Attributes:
        noise: x_T.
        ddim_noise: what is added to x_0.
        timesteps: at which, one per image, in [0, num_train_timesteps).
        key: for dropped paths and, if eta is not 0, the sampler's own noise.
    """

    noise: Float[Array, "b h w d"]
    ddim_noise: Float[Array, "b h w d"]
    timesteps: Int[Array, " b"]
    key: Key[Array, ""]


class Aux(NamedTuple):
    """What a step reports beside its loss: scalars to log, and the moved running statistics."""

    scalars: dict[str, Array]
    batch_stats: Any


def build(config: Config, model: nn.Module) -> Callable[..., tuple[Array, Aux]]:
    """Returns `(params, batch_stats, batch, key, step) -> (loss, Aux)`, a pure function."""
    predicted = model.config.diffusion.prediction_type
    if config.ddim_weighting == "posterior_mean" and predicted != "epsilon":
        raise ValueError(
            f"ddim_weighting 'posterior_mean' weights an error of the noise ('epsilon'), but the "
            f"model's prediction_type is {predicted!r}"
        )

    def loss_function(params, batch_stats, batch, key, step):
        del step  # the weights stay what they are throughout training
        draws = draw(model, batch["image"].shape, key)
        return loss_from_draws(config, model, params, batch_stats, batch, draws)

    return loss_function


def draw(model: nn.Module, image_shape: tuple[int, ...], key: Key[Array, ""]) -> Draws:
    """Draws what `loss_from_draws` needs for a batch of images of this shape."""
    noise_key, ddim_key, time_key, key = jax.random.split(key, 4)
    shape = model.latent_shape(image_shape)
    last = model.config.diffusion.num_train_timesteps
    return Draws(
        noise=random.normal(noise_key, shape),
        ddim_noise=random.normal(ddim_key, shape),
        timesteps=jax.random.randint(time_key, shape[:1], 0, last),
        key=key,
    )


def loss_from_draws(
    config: Config,
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    batch: Mapping[str, Array],
    draws: Draws,
) -> tuple[Float[Array, ""], Aux]:
    """The loss of one training step with given random numbers.

    Args:
        config: this objective's.
        model: a `DiffusionDepth`.
        params, batch_stats: its variables.
        batch: "image" [b, h, w, 3] normalised, "depth" [b, h, w, 1] in metres, "valid_mask".
            Height and width must be multiples of the codec's factor.
        draws: see there.

    Returns:
        The weighted sum of the terms and, among the scalars, every term (unweighted).
    """
    valid_mask = batch["valid_mask"] & (batch["depth"] > MIN_DEPTH)
    target = jnp.where(valid_mask, batch["depth"], 0.0)
    if target.shape[1] % model.config.codec.factor or target.shape[2] % model.config.codec.factor:
        raise ValueError(
            f"training images of {target.shape[1]}x{target.shape[2]} pixels do not divide by the "
            f"codec's factor {model.config.codec.factor}: choose another crop"
        )
    diffusion = model.config.diffusion
    schedule = diffusion.schedule
    sampler_key, drop_path_key = jax.random.split(draws.key)

    def forward(module):
        condition = module.encode_image(batch["image"], train=True)
        latent = module.sample(condition, draws.noise, key=sampler_key)
        depth = module.decode_latent(latent, train=True)
        # Moves the encoder's running statistics, as in the release, also where no term uses it.
        encoded = module.encode_depth(target, train=True)
        noisy = add_noise(schedule, latent, draws.ddim_noise, draws.timesteps)
        return latent, depth, encoded, module.predict_noise(condition, noisy, draws.timesteps)

    (latent, depth, encoded, predicted), updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        method=forward,
        mutable=["batch_stats"],
        rngs={"drop_path": drop_path_key},
    )
    wanted = training_target(
        schedule, latent, draws.ddim_noise, draws.timesteps, diffusion.prediction_type
    )
    ddim = jnp.mean((predicted - wanted) ** 2, (1, 2, 3))
    if config.ddim_weighting == "posterior_mean":
        ddim *= posterior_mean_weight(schedule, draws.timesteps)
    masked = (depth, target, valid_mask)
    terms = {
        "l1": losses.l1(*masked, max_depth=config.max_depth),
        "l2": losses.l2(*masked, max_depth=config.max_depth),
        "silog": losses.silog(*masked, **dataclasses.asdict(config.silog_options)),
        "latent": jnp.mean((latent - encoded) ** 2, (1, 2, 3)),
        "ddim": ddim,
    }
    terms = {name: jnp.mean(values) for name, values in terms.items()}
    weighted = [getattr(config, name) * terms[name] for name in terms if getattr(config, name)]
    scalars = terms | {
        "depth_mean": jnp.mean(depth),
        "depth_max": jnp.max(depth),
        "latent_rms": jnp.sqrt(jnp.mean(latent**2)),
        "valid_fraction": jnp.mean(valid_mask.astype(jnp.float32)),
    }
    return sum(weighted), Aux(scalars, updated["batch_stats"])
