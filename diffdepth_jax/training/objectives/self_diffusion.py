"""Self-diffusion (DiffusionDepth, section 3.4): the model diffuses its own refined latent.

Sparse ground truth cannot be diffused: its latent says little about pixels between measurements. So
the whole sampler runs with gradients, its result x_0 is decoded and compared with ground truth
where available, and the denoiser is trained on x_0 plus noise. Gradients flow through x_0 there as
well.

The DDIM loss stays near 1, its value for predicting zero, so it does not show whether the model
learns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.networks.network import Denoises
from diffdepth_jax.ops import random
from diffdepth_jax.ops.diffusion import (
    DrawnSteps,
    add_noise,
    inference_timesteps,
    posterior_mean_weight,
    training_target,
)
from diffdepth_jax.training.objectives import pixel
from diffdepth_jax.training.objectives.objective import SupportsStepCounts
from diffdepth_jax.training.objectives.pixel import Aux, PixelTerms

# The clean latent in training: the sampler's x_0 or the encoded ground truth.
Latent = Literal["refined", "ground_truth"]


@dataclass(frozen=True)
class Config(PixelTerms, SupportsStepCounts):
    """Weights of the loss terms, each a mean over the batch's images, and their options.

    Attributes:
        l1, l2, silog, max_depth, silog_options, auxiliary_fraction: see `pixel.PixelTerms`.
        latent: squared error between x_0 and the encoded ground truth.
        ddim: squared error of the predicted noise.
        ddim_weighting: "noise" as in the release; "posterior_mean" weights each image's error to
            give the paper's ||x_{t-1} - mu(x_t, t, c)||^2.
        gradient_steps: gradients flow through this many last steps of the sampler; None for all, as
            published. Fewer steps save memory but leave the encoder with small gradients.
        step_counts: see `SupportsStepCounts`. Every update draws one of these numbers; empty to
            always use the model's own number, as published.
    """

    WEIGHTS: ClassVar[tuple[str, ...]] = (*PixelTerms.WEIGHTS, "latent", "ddim")

    name: Literal["self_diffusion"] = "self_diffusion"
    latent: float = 0.0
    ddim: float = 1.0
    ddim_weighting: Literal["noise", "posterior_mean"] = "noise"
    gradient_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts()
        if self.gradient_steps is not None and self.gradient_steps < 1:
            raise ValueError(
                f"gradient_steps is {self.gradient_steps}; it must be at least 1, or None for all"
            )


VARIANTS = {
    # 1.0*L1 + 1.0*L2 + 1.0*DDIM, where the trainer divides everything by the 2 images per GPU, over
    # which the DDIM term is already a mean.
    "release": Config(ddim=0.5),
    # The terms of the paper's equation, whose weights are not published, with L1 and L2 as
    # auxiliary losses in the first half. Noise weighting is kept: the other is smaller by 1e-4.
    "paper": Config(silog=1.0, latent=1.0, ddim=1.0, auxiliary_fraction=0.5),
}


class Draws(NamedTuple):
    """All random numbers of one training step.

    Attributes:
        noise: x_T.
        ddim_noise: the noise added to x_0.
        timesteps: when it is added, one per image, in [0, num_train_timesteps).
        key: for drop path and, if eta is not 0, the sampler's own noise.
        steps: number of denoising steps; None for the model's own.
    """

    noise: Float[Array, "b h w d"]
    ddim_noise: Float[Array, "b h w d"]
    timesteps: Int[Array, " b"]
    key: Key[Array, ""]
    steps: DrawnSteps | None = None


def build(
    config: Config,
    model: nn.Module,
    num_steps: int,
    diffused: Latent = "refined",
    decoded: Latent = "refined",
) -> Callable[..., tuple[Array, Aux]]:
    """Returns `(params, batch_stats, batch, key, step) -> (loss, Aux)`, a pure function.

    Args:
        config: this objective's config.
        model: a `DiffusionDepth`.
        num_steps: updates in the whole run; `auxiliary_fraction` refers to them.
        diffused: the latent that noise is added to for training the denoiser.
        decoded: the latent that the pixel terms decode. If both are the ground truth, the sampler
            does not run.

    Raises:
        ConfigError: if the model does not fit the config.
    """
    if not isinstance(model, Denoises):
        raise ConfigError(
            f"the objective {config.name!r} needs a network that predicts noise, but "
            f"{model.config.name!r} does not: use 'pixel'"
        )
    diffusion = model.config.diffusion
    if config.ddim_weighting == "posterior_mean" and diffusion.prediction_type != "epsilon":
        raise ConfigError(
            "ddim_weighting 'posterior_mean' needs prediction_type 'epsilon', but the model's is "
            f"{diffusion.prediction_type!r}"
        )
    if config.gradient_steps and config.gradient_steps > diffusion.num_inference_steps:
        raise ConfigError(
            f"gradient_steps is {config.gradient_steps}, but the model's sampler has "
            f"{diffusion.num_inference_steps} steps: use fewer, or None for all"
        )

    check_step_counts(config.step_counts, diffusion)

    def loss_function(
        params: Any, batch_stats: Any, batch: Mapping[str, Array], key: Key[Array, ""], step: Array
    ) -> tuple[Array, Aux]:
        draws = draw(model, batch["image"].shape, key, config.step_counts)
        terms, aux = terms_from_draws(
            config, model, params, batch_stats, batch, draws, diffused, decoded
        )
        return pixel.weighted_sum(config, terms, step, num_steps), aux

    return loss_function


def check_step_counts(step_counts: tuple[int, ...], diffusion: Any) -> None:
    """Raises ConfigError for numbers of steps that the model's sampler does not support."""
    own = diffusion.num_inference_steps
    if step_counts and own not in step_counts:
        raise ConfigError(
            f"step_counts are {step_counts}, which lack the model's own num_inference_steps {own}: "
            "add it, or set the model's to one of these"
        )
    for count in step_counts:
        try:
            inference_timesteps(diffusion.num_train_timesteps, count, diffusion.timestep_spacing)
        except ValueError as error:
            raise ConfigError(f"step_counts are {step_counts}: {error}") from error


def draw(
    model: nn.Module,
    image_shape: tuple[int, ...],
    key: Key[Array, ""],
    step_counts: tuple[int, ...] = (),
) -> Draws:
    """Draws what `terms_from_draws` needs for a batch of images of this shape."""
    noise_key, ddim_key, time_key, key = jax.random.split(key, 4)
    shape = model.latent_shape(image_shape)
    last = model.config.diffusion.num_train_timesteps
    steps = None
    if step_counts:
        # From a separate key, so that it does not change the other draws.
        index = jax.random.randint(jax.random.fold_in(key, 0), (), 0, len(step_counts))
        steps = DrawnSteps(step_counts, index)
    return Draws(
        noise=random.normal(noise_key, shape),
        ddim_noise=random.normal(ddim_key, shape),
        timesteps=jax.random.randint(time_key, shape[:1], 0, last),
        key=key,
        steps=steps,
    )


def terms_from_draws(
    config: Config,
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    batch: Mapping[str, Array],
    draws: Draws,
    diffused: Latent = "refined",
    decoded: Latent = "refined",
) -> tuple[dict[str, Float[Array, ""]], Aux]:
    """The unweighted loss terms of one training step, with given random numbers.

    Args:
        config: this objective's config.
        model: a `DiffusionDepth`.
        params, batch_stats: its variables.
        batch: "image" [b, h, w, 3] normalised, "depth" [b, h, w, 1] in metres, "valid_mask".
            Height and width must be multiples of the codec's factor.
        draws: see `Draws`.
        diffused, decoded: see `build`.

    Returns:
        The terms by name and, together with other scalars, in `Aux`.
    """
    target, valid_mask = pixel.ground_truth(batch)
    if target.shape[1] % model.config.codec.factor or target.shape[2] % model.config.codec.factor:
        raise ConfigError(
            f"training images of {target.shape[1]}x{target.shape[2]} pixels are not divisible by "
            f"the codec's factor {model.config.codec.factor}: choose another crop"
        )
    diffusion = model.config.diffusion
    schedule = diffusion.schedule
    sampler_key, drop_path_key = jax.random.split(draws.key)

    def forward(module: Any) -> tuple:
        condition = module.encode_image(batch["image"], train=True)
        # As in the release, this updates the encoder's running statistics even if no term uses it.
        encoded = module.encode_depth(target, train=True)
        if "refined" in (diffused, decoded):
            latent = module.sample(
                condition,
                draws.noise,
                draws.steps,
                key=sampler_key,
                gradient_steps=config.gradient_steps,
            )
        else:
            latent = encoded
        depth = module.decode_latent(latent if decoded == "refined" else encoded, train=True)
        clean = latent if diffused == "refined" else encoded
        noisy = add_noise(schedule, clean, draws.ddim_noise, draws.timesteps)
        predicted = module.predict_noise(condition, noisy, draws.timesteps)
        wanted = training_target(
            schedule, clean, draws.ddim_noise, draws.timesteps, diffusion.prediction_type
        )
        return latent, depth, encoded, predicted - wanted

    (latent, depth, encoded, error), updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        method=forward,
        mutable=["batch_stats"],
        rngs={"drop_path": drop_path_key},
    )
    ddim = jnp.mean(error**2, (1, 2, 3))
    if config.ddim_weighting == "posterior_mean":
        ddim *= posterior_mean_weight(schedule, draws.timesteps)
    terms = pixel.pixel_terms(config, depth, target, valid_mask) | {
        "latent": jnp.mean((latent - encoded) ** 2),
        "ddim": jnp.mean(ddim),
    }
    latent_rms = jnp.sqrt(jnp.mean(latent**2))
    scalars = terms | pixel.depth_scalars(depth, valid_mask) | {"latent_rms": latent_rms}
    moved = updated["batch_stats"]
    if draws.steps is not None:
        moved = _moved_by_own_steps(moved, batch_stats, draws.steps, diffusion.num_inference_steps)
    return terms, Aux(scalars, moved)


def _moved_by_own_steps(moved: Any, before: Any, steps: DrawnSteps, own: int) -> Any:
    """Batch statistics, with the decoder's part only updated for the model's own number of steps.

    They depend on the number of steps (see `inference.recalibration`): a mixture would fit none.
    """
    is_own = steps.index == steps.counts.index(own)
    decoder = jax.tree.map(
        lambda new, old: jnp.where(is_own, new, old),
        moved["codec"]["decoder"],
        before["codec"]["decoder"],
    )
    return {**moved, "codec": {**moved["codec"], "decoder": decoder}}
