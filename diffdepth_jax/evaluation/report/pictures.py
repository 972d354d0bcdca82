"""`predictions.png`: images, predictions and ground truth side by side."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffdepth_jax import run_files, visualize
from diffdepth_jax.data import pipeline
from diffdepth_jax.data.experiment_data import ExperimentData
from diffdepth_jax.evaluation.protocols import Protocol, frames

_PREDICTIONS = 6  # number of samples shown


def save_predictions(
    workdir: Path,
    protocol: Protocol,
    predict_fn: Callable[[list[np.ndarray]], list[np.ndarray]],
    data: ExperimentData,
) -> None:
    """Draws `predictions.png`: images, depth, ground truth and error of a few samples."""
    samples = pipeline.evaluation_samples(data.evaluation, _PREDICTIONS, data.on_error)
    samples = list(pipeline.readable(samples))
    images = [protocol.prepare(sample["image"]) for sample in samples]
    targets = [
        depth_of(sample, image, protocol) for sample, image in zip(samples, images, strict=True)
    ]
    predictions = predict_fn(images)
    scores = [
        protocol.score_sample(prediction, sample).metrics.get("abs_rel", np.nan)
        for prediction, sample in zip(predictions, samples, strict=True)
    ]
    visualize.save_predictions(
        workdir / run_files.PREDICTIONS, images, predictions, targets, scores
    )


def depth_of(sample: Mapping[str, Any], image: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Ground truth [h, w] for the model's input, at its size; for display only."""
    depth = frames.take_depth(sample["depth"], protocol.input)
    return frames.resize_nearest(depth, image.shape[:2])
