"""The data part of an experiment, which training and evaluation share."""

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
      evaluation_limit: score at most this many frames, spread evenly; None for all.
      baseline_frames: how many training frames, spread evenly, give the median depth map that the
        metrics are compared with; 0 leaves the comparison out.
      on_error: `raise` at a frame that cannot be read, or `skip` it: in training the next readable
        one of the source takes its place, in evaluation it is left out; either way it is logged
        once, counted and listed (`skipped.json` of a run; `metrics.json`).
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
    """The first evaluation frame; where unreadable ones are skipped, the first that is not.

    Raises:
      DataError: if there is none.
    """
    samples = pipeline.evaluation_samples(data.evaluation, on_error=data.on_error)
    for sample in pipeline.readable(samples):
        return sample
    raise DataError(
        f"none of the {len(samples)} evaluation frames can be read; the first: "
        f"{samples[0]['error']}"
    )
