"""Pictures of a run: its curves, and the way of a sample's depth through the denoising steps."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from diffdepth_jax import visualize
from diffdepth_jax.data.experiment_data import first_evaluation_sample
from diffdepth_jax.evaluation.report.pictures import depth_of
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.ops import random
from diffdepth_jax.training.experiment import Experiment
from diffdepth_jax.training.logging import CSV_NAME, read_csv

_DENOISING = 6  # moments in denoising.png


def draw_denoising(exp: Experiment, model: DepthModel, workdir: Path) -> None:
    """Draws `denoising.png`, the way of one sample's depth, where the model goes in steps."""
    if not model.denoises:
        return
    protocol = exp.evaluation.build()
    sample = first_evaluation_sample(exp.data)
    image = protocol.prepare(sample["image"])
    target = depth_of(sample, image, protocol)
    factor = model.config.codec.factor  # whole latent pixels only
    height, width = (side - side % factor for side in image.shape[:2])
    image, target = image[:height, :width], target[:height, :width]
    depths = denoising_steps(model, image, exp.evaluation.num_inference_steps)
    shown = np.linspace(0, len(depths) - 1, min(_DENOISING, len(depths))).round().astype(int)
    captions = {f"after step {step + 1} of {len(depths)}": depths[step] for step in shown}
    visualize.save_denoising(workdir / "denoising.png", image, captions, target)


def draw_curves(workdir: Path) -> None:
    """Draws `curves.png` of a run's log, where it has one."""
    if (workdir / CSV_NAME).exists():
        visualize.save_curves(workdir / "curves.png", read_csv(workdir / CSV_NAME))


def denoising_steps(
    model: DepthModel,
    image: UInt8[np.ndarray, "h w 3"],
    num_inference_steps: int | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "n h w"]:
    """Depth in metres decoded from the latent after every step of a diffusion model's sampler."""
    network, variables = model.model, model.variables_at(num_inference_steps)
    normalised = model.input_spec.normalise(image)[None]
    key = jax.random.key(seed)
    noise = random.normal(key, network.latent_shape(normalised.shape))

    @jax.jit
    def decode_trajectory(variables: Any, image: jax.Array) -> jax.Array:
        condition = network.apply(variables, image, method="encode_image")
        _, latents = network.apply(
            variables,
            condition,
            noise,
            num_inference_steps,
            key=key,
            return_trajectory=True,
            method="sample",
        )
        return network.apply(variables, latents[:, 0], method="decode_latent")

    return np.asarray(decode_trajectory(variables, normalised))[..., 0]
