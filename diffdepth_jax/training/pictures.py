"""Pictures of a run: training curves, and a sample's depth during denoising."""

from pathlib import Path

import numpy as np

from diffdepth_jax import run_files, visualize
from diffdepth_jax.data.experiment_data import first_evaluation_sample
from diffdepth_jax.evaluation.protocols import frames
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.training.experiment import Experiment
from diffdepth_jax.training.logging import read_csv

_DENOISING = 6  # steps shown in denoising.png


def draw_denoising(exp: Experiment, model: DepthModel, workdir: Path) -> None:
    """Draws `denoising.png`, one sample's depth during denoising, if the model denoises."""
    if not model.denoises:
        return
    protocol = exp.evaluation.build()
    sample = first_evaluation_sample(exp.data)
    image = protocol.prepare(sample["image"])
    depth = frames.take_depth(sample["depth"], protocol.input)
    target = frames.resize_nearest(depth, image.shape[:2])  # of the model's input
    depths = model.trajectory(image, exp.evaluation.num_inference_steps)
    shown = np.linspace(0, len(depths) - 1, min(_DENOISING, len(depths))).round().astype(int)
    captions = {f"after step {step + 1} of {len(depths)}": depths[step] for step in shown}
    visualize.save_denoising(workdir / run_files.DENOISING, image, captions, target)


def draw_curves(workdir: Path) -> None:
    """Draws `curves.png` from a run's log, if there is one."""
    scalars = workdir / run_files.SCALARS
    if scalars.exists():
        visualize.save_curves(workdir / run_files.CURVES, read_csv(scalars))
