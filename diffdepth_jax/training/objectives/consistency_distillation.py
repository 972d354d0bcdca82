"""Consistency distillation (Song et al. 2023, arXiv:2303.01469): a trained sampler in few steps.

The student learns to jump from any point of the teacher's sampling trajectory to the trajectory's
end. The jumps from two neighbouring points must end at the same place (algorithm 2 there); no
gradient flows through the one from the less noisy point, and for the last step it is the teacher's
clean latent itself. The weights of both are the student's current ones (Song and Dhariwal 2024,
arXiv:2310.14189, section 3.2).

Self-diffusion's latents have no fixed scale, so differences are measured in units of the teacher's
clean latents. In addition the jump's end is decoded and compared with the ground truth, as the goal
is still depth.
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
    """Weights of the terms, each a mean over the batch's images, and what they mean.

    Attributes:
        l1, l2, silog, max_depth, silog_options, auxiliary_fraction: see `pixel.PixelTerms`.
        consistency: squared difference of the two jumps, in units of the mean square of the
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

    The batch also has the points of `training.teacher.make_trajectory_points`.

    Raises:
        ConfigError: for a model that does not denoise, or numbers of steps that it cannot have.
    """
    if not isinstance(model, Denoises):
        raise ConfigError(
            f"the objective {config.name!r} is for networks that denoise; {model.config.name!r} "
            "does not: use 'pixel'"
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
    """The terms of one training step, unweighted.

    Args:
        config: this objective's.
        model: the student.
        params, batch_stats: its variables.
        batch: "image" [b, h, w, 3] normalised, "depth" [b, h, w, 1] in metres, "valid_mask"; and
            the points of the teacher's trajectories.
        key: for dropped paths.

    Returns:
        The terms by name and, with other scalars, in `Aux`.
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
