"""The data config of an experiment, shared by training and evaluation."""

import dataclasses
from typing import Any

from diffdepth_jax.config import choice
from diffdepth_jax.data import pipeline
from diffdepth_jax.data.pipeline import DataConfig, OnError
from diffdepth_jax.data.sources import Sample
from diffdepth_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class ExperimentData:
    """Training and evaluation data.

    Attributes:
        train: see `data.pipeline.DataConfig`.
        evaluation: `name` (kitti, nyu) and the fields of that source's `Config`.
        evaluation_limit: evaluate at most this many frames, spread evenly; None for all.
        baseline_frames: number of training frames, spread evenly, whose median depth map is the
            baseline that metrics are compared with; 0 for no baseline. Without measured depth in
            metres, as in labels for distillation, there is none either.
        on_error: what to do about a frame that cannot be read: `raise`, or `skip` it. Training then
            uses the source's next readable frame instead, and evaluation omits it; both log it
            once, count it and list it (in a run's `skipped.json`; in `metrics.json`).
    """

    train: DataConfig
    evaluation: Any = choice("source")
    evaluation_limit: int | None = None
    baseline_frames: int = 200
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        if self.evaluation_limit is not None and self.evaluation_limit < 1:
            raise ValueError(
                f"evaluation_limit is {self.evaluation_limit}; it must be at least 1 or None"
            )
        if self.baseline_frames < 0:
            raise ValueError(f"baseline_frames is {self.baseline_frames}; it must not be negative")


def first_evaluation_sample(data: ExperimentData) -> Sample:
    """The first evaluation frame; if unreadable frames are skipped, the first readable one.

    Raises:
        DataError: if there is none.
    """
    samples = pipeline.evaluation_samples(data.evaluation, on_error=data.on_error)
    for sample in pipeline.readable(samples):
        return sample
    raise DataError(
        f"none of the {len(samples)} evaluation frames can be read; the first error: "
        f"{samples[0]['error']}"
    )
