"""Decoder statistics for every number of denoising steps used in training.

During training, a model's decoder keeps running statistics for its own number of steps. Those for
other numbers are computed from training images once the weights are final (see
`inference.recalibration`), so that the checkpoint supports all of them.
"""

import contextlib
import itertools
from pathlib import Path

import numpy as np

from diffdepth_jax import inference
from diffdepth_jax.training import experiment
from diffdepth_jax.training.experiment import Experiment
from diffdepth_jax.training.objectives.objective import SupportsStepCounts
from diffdepth_jax.weights import orbax

NUM_IMAGES = 32


def of(exp: Experiment) -> tuple[int, ...]:
    """The numbers of denoising steps that are trained; empty for the model's own only."""
    return exp.objective.step_counts if isinstance(exp.objective, SupportsStepCounts) else ()


def recalibrate(exp: Experiment, workdir: Path) -> None:
    """Adds the statistics to the latest checkpoint, if the objective supports several counts.

    Existing ones are not computed again.
    """
    if not of(exp):
        return
    model = inference.load(workdir)
    done = {model.model.num_inference_steps, *model.recalibrated}
    missing = [count for count in of(exp) if count not in done]
    if not missing:
        return
    images = training_images(exp)
    for steps in missing:
        model = model.recalibrate_preprocessed(images, steps, seed=exp.seed)
    inference.save_recalibrated(model, orbax.checkpoint_directory(workdir))


def training_images(exp: Experiment) -> list[np.ndarray]:
    """Images [h, w, 3], cropped, augmented and normalised as in training, in the same order."""
    with contextlib.closing(experiment.train_iterator(exp)) as iterator:
        images = itertools.chain.from_iterable(batch["image"] for batch in iterator)
        return list(itertools.islice(images, NUM_IMAGES))
