"""Noise schedules and the DDIM sampler (Song et al. 2021, arXiv:2010.02502).

Naming conventions: `sample` is x_t, `model_output` is the network's prediction, `alphas_cumprod` is
the cumulative product of 1 - beta. Arithmetic is float32 and element-wise, so samples may have any
shape [b, ...].
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from diffdepth_jax.ops import random
from diffdepth_jax.ops.remat import POLICIES, Remat

BetaSchedule = Literal["linear", "scaled_linear", "cosine"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]
_MAX_COSINE_BETA = 0.999


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Noise schedule: how much signal remains at each training timestep.

    Attributes:
        betas: float32 [T].
        alphas_cumprod: float32 [T], decreasing from nearly 1 towards 0.
    """

    betas: Float[np.ndarray, " t"]
    alphas_cumprod: Float[np.ndarray, " t"]

    @classmethod
    def create(
        cls,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: BetaSchedule = "linear",
    ) -> "Schedule":
        """Computes a schedule in float64.

        Args:
            num_train_timesteps: T.
            beta_start, beta_end: the first and last beta, in (0, 1); unused by "cosine".
            beta_schedule: "linear"; "scaled_linear" (linear in sqrt(beta), latent diffusion);
                "cosine" (Nichol and Dhariwal 2021, betas capped at 0.999).

        Raises:
            ValueError: for values outside these ranges.
        """
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, not {num_train_timesteps}")
        if not 0.0 < beta_start <= beta_end < 1.0:
            raise ValueError(
                f"betas must satisfy 0 < beta_start <= beta_end < 1, not {beta_start}, {beta_end}"
            )
        if beta_schedule == "linear":
            betas = np.linspace(beta_start, beta_end, num_train_timesteps)
        elif beta_schedule == "scaled_linear":
            betas = np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
        elif beta_schedule == "cosine":
            time = np.arange(num_train_timesteps + 1) / num_train_timesteps
            alphas_cumprod = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], _MAX_COSINE_BETA)
        else:
            raise ValueError(
                "beta_schedule must be 'linear', 'scaled_linear' or 'cosine', not "
                f"{beta_schedule!r}"
            )
        return cls(betas.astype(np.float32), np.cumprod(1 - betas).astype(np.float32))

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)


class DrawnSteps(NamedTuple):
    """A number of denoising steps that is drawn at run time.

    Attributes:
        counts: the numbers to choose from; a sampler is compiled for each.
        index: which of them to use.
    """

    counts: tuple[int, ...]
    index: Int[Array, ""]  # type: ignore[assignment]  # hides the method of tuples


def inference_timesteps(
    num_train_timesteps: int,
    num_inference_steps: int,
    spacing: TimestepSpacing = "leading",
) -> np.ndarray:
    """The sampler's timesteps, int32 [N], decreasing.

    With T = 1000:

    - "leading", used by the released models: [N-1, ..., 0] * (T // N). N = 20: 950, 900, ..., 0.
      The fewer the steps, the further the first one is from pure noise; a single step is at 0,
      where there is hardly any noise to remove.
    - "trailing" (Lin et al. 2024, arXiv:2305.08891, table 2): from T - 1 in steps of T / N.
      N = 4: 999, 749, 499, 249; N = 1: 999.
    - "linspace" (same table): N evenly spaced timesteps from T - 1 to 0, both included. N = 4: 999,
      666, 333, 0; N = 1: 999.

    Raises:
        ValueError: unless 1 <= N <= T, or for an unknown spacing.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must be between 1 and the {num_train_timesteps} training "
            f"timesteps, not {num_inference_steps}"
        )
    last = num_train_timesteps - 1
    if spacing == "leading":
        ratio = num_train_timesteps // num_inference_steps
        return np.arange(num_inference_steps - 1, -1, -1, dtype=np.int32) * np.int32(ratio)
    if spacing == "trailing":
        done = np.arange(num_inference_steps) / num_inference_steps
        return np.round(last - done * num_train_timesteps).astype(np.int32)
    if spacing == "linspace":
        return np.round(np.linspace(last, 0, num_inference_steps)).astype(np.int32)
    raise ValueError(f"spacing must be 'leading', 'trailing' or 'linspace', not {spacing!r}")


def add_noise(
    schedule: Schedule,
    sample: Float[Array, "b *shape"],
    noise: Float[Array, "b *shape"],
    timesteps: Int[Array, " b"],
) -> Float[Array, "b *shape"]:
    """x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) noise, one t per image."""
    alpha = jnp.asarray(schedule.alphas_cumprod)[timesteps]
    alpha = alpha.reshape(-1, *[1] * (sample.ndim - 1))
    return jnp.sqrt(alpha) * sample + jnp.sqrt(1 - alpha) * noise


def training_target(
    schedule: Schedule,
    sample: Float[Array, "b *shape"],
    noise: Float[Array, "b *shape"],
    timesteps: Int[Array, " b"],
    prediction_type: PredictionType = "epsilon",
) -> Float[Array, "b *shape"]:
    """What the network should predict at x_t = `add_noise(schedule, sample, noise, timesteps)`."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return sample
    # The velocity is x_t with the sample replaced by the noise, and the noise by the negative
    # sample.
    return add_noise(schedule, noise, -sample, timesteps)


def posterior_mean_weight(schedule: Schedule, timesteps: Int[Array, " b"]) -> Float[Array, " b"]:
    """Weight that turns a squared error of the noise into one of the mean of x_{t-1} given x_t.

    mu = (x_t - beta_t / sqrt(1 - alphas_cumprod_t) noise) / sqrt(1 - beta_t) (Ho et al. 2020,
    equation 11), so ||mu - mu'||^2 = beta_t^2 / ((1 - beta_t) (1 - alphas_cumprod_t)) times
    ||noise - noise'||^2.
    """
    beta = jnp.asarray(schedule.betas)[timesteps]
    alpha = jnp.asarray(schedule.alphas_cumprod)[timesteps]
    return beta**2 / ((1 - beta) * (1 - alpha))


def clean_sample(
    schedule: Schedule,
    model_output: Float[Array, "b *shape"],
    sample: Float[Array, "b *shape"],
    timesteps: Int[Array, " b"],
    prediction_type: PredictionType = "epsilon",
) -> Float[Array, "b *shape"]:
    """x_0 from the network's prediction at (`sample`, `timesteps`), one timestep per image."""
    alpha = jnp.asarray(schedule.alphas_cumprod)[timesteps]
    alpha = alpha.reshape(-1, *[1] * (sample.ndim - 1))
    signal, spread = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
    return _clean_and_noise(signal, spread, model_output, sample, prediction_type)[0]


def _clean_and_noise(
    signal: Array, spread: Array, model_output: Array, sample: Array, prediction_type: str
) -> tuple[Array, Array]:
    """x_0 and the noise, for any type of prediction."""
    if prediction_type == "epsilon":
        return (sample - spread * model_output) / signal, model_output
    if prediction_type == "sample":
        return model_output, (sample - signal * model_output) / spread
    if prediction_type == "v_prediction":
        clean = signal * sample - spread * model_output
        return clean, signal * model_output + spread * sample
    raise ValueError(
        f"prediction_type must be 'epsilon', 'sample' or 'v_prediction', not {prediction_type!r}"
    )


def ddim_step(
    schedule: Schedule,
    model_output: Float[Array, "b *shape"],
    sample: Float[Array, "b *shape"],
    timestep: Int[Array, ""],
    previous_timestep: Int[Array, ""],
    *,
    prediction_type: PredictionType = "epsilon",
    clip_sample: float | None = None,
    eta: float = 0.0,
    key: Key[Array, "*keys"] | None = None,
) -> Float[Array, "b *shape"]:
    """One step from x_t to x at `previous_timestep` (equation 12).

    Args:
        schedule: the noise schedule.
        model_output: the network's prediction at (`sample`, `timestep`).
        sample: x_t.
        timestep: t, the same for the whole batch.
        previous_timestep: the less noisy timestep; negative means the clean sample.
        prediction_type: whether the network predicts the noise, x_0 or the velocity (Salimans and
            Ho 2022).
        clip_sample: clips the predicted x_0 to [-clip_sample, clip_sample], and adjusts the
            predicted noise so that it still gives x_t. None for no clipping, as published.
        eta: 0 is deterministic DDIM, 1 has the variance of DDPM (equation 16).
        key: for the noise of this step; required if and only if eta > 0. One for the batch, or one
            per image, whose noise is then independent of the batch.
    """
    if eta > 0 and key is None:
        raise ValueError(f"eta={eta} adds noise at every step and needs a key")
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod)
    alpha = alphas_cumprod[timestep]
    previous = jnp.where(
        previous_timestep >= 0, alphas_cumprod[jnp.maximum(previous_timestep, 0)], 1.0
    )
    signal, spread = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
    clean, noise = _clean_and_noise(signal, spread, model_output, sample, prediction_type)
    if clip_sample is not None:
        clean = jnp.clip(clean, -clip_sample, clip_sample)
        noise = (sample - signal * clean) / spread
    variance = eta**2 * (1 - previous) / (1 - alpha) * (1 - alpha / previous)
    # Never negative, except for rounding.
    direction = jnp.sqrt(jnp.maximum(1 - previous - variance, 0.0))
    result = jnp.sqrt(previous) * clean + direction * noise
    if key is not None and eta > 0:
        result += jnp.sqrt(variance) * _step_noise(key, sample.shape)
    return result


def ddim_sample(
    schedule: Schedule,
    denoise: Callable[[Array, Array], Array],
    noise: Float[Array, "b *shape"],
    num_inference_steps: int | DrawnSteps,
    *,
    spacing: TimestepSpacing = "leading",
    prediction_type: PredictionType = "epsilon",
    clip_sample: float | None = None,
    eta: float = 0.0,
    key: Key[Array, "*keys"] | None = None,
    remat: Remat = "none",
    gradient_steps: int | None = None,
    return_trajectory: bool = False,
) -> Float[Array, "b *shape"] | tuple[Float[Array, "b *shape"], Float[Array, "n b *shape"]]:
    """Runs the sampler, differentiable in reverse mode: one `lax.scan`, two with `gradient_steps`.

    Args:
        schedule: the noise schedule.
        denoise: `(sample [b, ...], timestep [] int32) -> model_output [b, ...]`; anything that does
            not depend on the step should be computed beforehand and closed over.
        noise: x_T, float32.
        num_inference_steps: N, see `inference_timesteps`; or a `DrawnSteps`.
        spacing: spacing of the timesteps, see `inference_timesteps`.
        prediction_type, clip_sample, eta: see `ddim_step`.
        key: as in `ddim_step`; step i uses `fold_in(key, i)`.
        remat: which parts of a step are recomputed in the backward pass, see `ops.remat`.
        gradient_steps: gradients only flow through this many last steps, and nothing is stored for
            earlier ones; None for all.
        return_trajectory: also return the samples after every step, [N, b, ...]; not with
            `DrawnSteps`.

    Returns:
        x_0, or (x_0, trajectory).

    Raises:
        ValueError: for invalid numbers of steps.
    """
    if isinstance(num_inference_steps, DrawnSteps):
        if return_trajectory:
            raise ValueError("return_trajectory needs a fixed number of steps, not a drawn one")
        samplers = [
            functools.partial(
                ddim_sample,
                schedule,
                denoise,
                num_inference_steps=count,
                spacing=spacing,
                prediction_type=prediction_type,
                clip_sample=clip_sample,
                eta=eta,
                key=key,
                remat=remat,
                gradient_steps=gradient_steps and min(gradient_steps, count),
            )
            for count in num_inference_steps.counts
        ]
        return lax.switch(num_inference_steps.index, samplers, noise)
    timesteps = inference_timesteps(schedule.num_train_timesteps, num_inference_steps, spacing)
    # After the last step the sample is clean.
    previous_timesteps = jnp.asarray(np.append(timesteps[1:], np.int32(-1)))
    if gradient_steps is None:
        gradient_steps = num_inference_steps
    if not 1 <= gradient_steps <= num_inference_steps:
        raise ValueError(
            f"gradient_steps is {gradient_steps}; it must be between 1 and the sampler's "
            f"{num_inference_steps} steps, or None for all"
        )

    def step(sample: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array | None]:
        index, timestep, previous_timestep = inputs
        sample = ddim_step(
            schedule,
            denoise(sample, timestep),
            sample,
            timestep,
            previous_timestep,
            prediction_type=prediction_type,
            clip_sample=clip_sample,
            eta=eta,
            key=None if key is None else _fold_in(key, index),
        )
        return sample, sample if return_trajectory else None

    def step_without_gradient(
        sample: Array, inputs: tuple[Array, ...]
    ) -> tuple[Array, Array | None]:
        # Gradients are stopped at every step, not after the last, so that nothing is stored for
        # them.
        return lax.stop_gradient(step(sample, inputs))

    last_step = step
    if remat != "none":
        # Inside a scan the compiler cannot merge the recomputation with the original computation.
        last_step = jax.checkpoint(step, prevent_cse=False, policy=POLICIES[remat])
    inputs = jnp.arange(num_inference_steps), jnp.asarray(timesteps), previous_timesteps
    first = num_inference_steps - gradient_steps
    sample = noise
    trajectories: list[Any] = []
    if first:
        early = jax.tree.map(lambda values: values[:first], inputs)
        sample, trajectory = lax.scan(step_without_gradient, sample, early)
        trajectories.append(trajectory)
    late = jax.tree.map(lambda values: values[first:], inputs)
    sample, trajectory = lax.scan(last_step, sample, late)
    trajectories.append(trajectory)
    return (sample, jnp.concatenate(trajectories)) if return_trajectory else sample


def _fold_in(key: Key[Array, "*keys"], index: Int[Array, ""]) -> Key[Array, "*keys"]:
    return (
        jax.vmap(jax.random.fold_in, (0, None))(key, index)
        if key.ndim
        else jax.random.fold_in(key, index)
    )


def _step_noise(key: Key[Array, "*keys"], shape: tuple[int, ...]) -> Float[Array, "b *shape"]:
    if not key.ndim:
        return random.normal(key, shape)
    return jax.vmap(lambda each: random.normal(each, shape[1:]))(key)
