"""Consistency distillation (Song et al. 2023, arXiv:2303.01469) of a trained sampler.

The student learns to jump from any point on the teacher's sampling trajectory to its end. Jumps
from two neighbouring points must agree (algorithm 2 of the paper); the target is the jump from the
less noisy point, without gradients, or for the last step the teacher's clean latent itself. Both
jumps use the student's current weights (Song and Dhariwal 2024, arXiv:2310.14189, section 3.2).

Self-diffusion's latents have no fixed scale, so differences are relative to the teacher's clean
latents. In addition, the end of the jump is decoded and compared with ground truth, as the goal is
still depth.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.networks.network import Denoises
from diffdepth_jax.ops.diffusion import clean_sample
from diffdepth_jax.training.objectives import pixel, self_diffusion
from diffdepth_jax.training.objectives.objective import DistilsSampler, SupportsStepCounts
from diffdepth_jax.training.objectives.pixel import Aux, PixelTerms


@dataclass(frozen=True)
class Config(PixelTerms, SupportsStepCounts, DistilsSampler):
    """Weights of the loss terms, each a mean over the batch's images, and their options.

    Attributes:
        l1, l2, silog, max_depth, silog_options, auxiliary_fraction: see `pixel.PixelTerms`.
        consistency: squared difference of the two jumps, divided by the mean square of the
            teacher's clean latents.
        step_counts: see `SupportsStepCounts`.
    """

    WEIGHTS: ClassVar[tuple[str, ...]] = (*PixelTerms.WEIGHTS, "consistency")

    name: Literal["consistency_distillation"] = "consistency_distillation"
    consistency: float = 1.0
    step_counts: tuple[int, ...] = field(default=(1, 2, 4), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts()


def build(config: Config, model: nn.Module, num_steps: int) -> Callable[..., tuple[Array, Aux]]:
    """Returns `(params, batch_stats, batch, key, step) -> (loss, Aux)`, a pure function.

    The batch must also have the points from `training.teacher.make_trajectory_points`.

    Raises:
        ConfigError: if the model does not denoise, or does not support the numbers of steps.
    """
    if not isinstance(model, Denoises):
        raise ConfigError(
            f"the objective {config.name!r} needs a network that denoises, but "
            f"{model.config.name!r} does not: use 'pixel'"
        )
    self_diffusion.check_step_counts(config.step_counts, model.config.diffusion)

    def loss_function(
        params: Any, batch_stats: Any, batch: Mapping[str, Array], key: Key[Array, ""], step: Array
    ) -> tuple[Array, Aux]:
        terms, aux = terms_of_points(config, model, params, batch_stats, batch, key)
        return pixel.weighted_sum(config, terms, step, num_steps), aux

    return loss_function


def terms_of_points(
    config: Config,
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
) -> tuple[dict[str, Float[Array, ""]], Aux]:
    """The unweighted loss terms of one training step.

    Args:
        config: this objective's config.
        model: the student.
        params, batch_stats: its variables.
        batch: "image" [b, h, w, 3] normalised, "depth" [b, h, w, 1] in metres, "valid_mask"; and
            points of the teacher's trajectories.
        key: for drop path.

    Returns:
        The terms by name and, together with other scalars, in `Aux`.
    """
    target, valid_mask = pixel.ground_truth(batch)
    diffusion = model.config.diffusion

    def forward(module: Any) -> tuple[Array, Array, Array]:
        condition = module.encode_image(batch["image"], train=True)

        def jump(condition: Array, latent: Array, timesteps: Array) -> Array:
            output = module.predict_noise(condition, latent, timesteps)
            return clean_sample(
                diffusion.schedule, output, latent, timesteps, diffusion.prediction_type
            )

        latent = jump(condition, batch["latent"], batch["timestep"])
        ends = batch["next_timestep"] < 0
        later = jump(
            jax.lax.stop_gradient(condition),
            batch["next_latent"],
            jnp.maximum(batch["next_timestep"], 0),
        )
        wanted = jnp.where(ends[:, None, None, None], batch["next_latent"], later)
        return latent, jax.lax.stop_gradient(wanted), module.decode_latent(latent, train=True)

    (latent, wanted, depth), updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        method=forward,
        mutable=["batch_stats"],
        rngs={"drop_path": key},
    )
    unit = jnp.mean(batch["clean_latent"] ** 2)
    terms = pixel.pixel_terms(config, depth, target, valid_mask) | {
        "consistency": jnp.mean((latent - wanted) ** 2) / unit
    }
    rms = {"latent_rms": jnp.sqrt(jnp.mean(latent**2)), "teacher_latent_rms": jnp.sqrt(unit)}
    scalars = terms | pixel.depth_scalars(depth, valid_mask) | rms
    return terms, Aux(scalars, updated["batch_stats"])
