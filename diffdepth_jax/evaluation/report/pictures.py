"""`predictions.png`: images, predictions and ground truth side by side."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffdepth_jax import run_files, visualize
from diffdepth_jax.data import pipeline
from diffdepth_jax.data.experiment_data import ExperimentData
from diffdepth_jax.evaluation.protocols import Protocol

_PREDICTIONS = 6  # number of samples shown


def save_predictions(
    workdir: Path,
    protocol: Protocol,
    predict_fn: Callable[[list[np.ndarray]], list[np.ndarray]],
    data: ExperimentData,
) -> None:
    """Draws `predictions.png`: images, depth, ground truth and error of a few samples, as scored.

    Args:
        workdir: directory of the picture.
        protocol: adapted to what `predict_fn` predicts (`checkpoint.settings`).
        predict_fn: predicts images from `protocol.prepare`.
        data: from an `Experiment`.
    """
    samples = pipeline.evaluation_samples(data.evaluation, _PREDICTIONS, data.on_error)
    samples = list(pipeline.readable(samples))
    found = predict_fn([protocol.prepare(sample["image"]) for sample in samples])
    images, predictions, targets, scores = [], [], [], []
    for prediction, sample in zip(found, samples, strict=True):
        images.append(protocol.scored_part(sample["image"]))
        compared = protocol.compare(prediction, sample)
        if compared is None:  # without a valid pixel, a relative prediction has no scale
            predictions.append(np.full(images[-1].shape[:2], np.nan))
            targets.append(np.zeros(images[-1].shape[:2]))
        else:
            predictions.append(compared.prediction)
            targets.append(np.where(compared.valid_mask, compared.target, 0))
        score = protocol.score_sample(prediction, sample)
        scores.append(score.metrics.get("abs_rel", np.nan))
    visualize.save_predictions(
        workdir / run_files.PREDICTIONS, images, predictions, targets, scores
    )
