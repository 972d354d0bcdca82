"""A baseline without a model: the training set's per-pixel median depth.

It is the best constant guess in absolute error, harder to beat than the mean map, and shows how
much of a metric the camera's fixed mounting explains by itself.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from diffdepth_jax.data import pipeline
from diffdepth_jax.data.experiment_data import ExperimentData
from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation.protocols import frames
from diffdepth_jax.evaluation.protocols.frames import Size

_LOG = logging.getLogger(__name__)


def of_training(data: ExperimentData) -> np.ndarray | None:
    """`median_depth_map` of an experiment's baseline frames; None if it has none or, with a
    warning, if they are not available or have no measured depth in metres."""
    if not data.baseline_frames:
        return None
    try:
        training = pipeline.evaluation_samples(
            data.train.source, data.baseline_frames, data.on_error
        )
        return median_depth_map(_metric_depths(pipeline.readable(training)))
    except FileNotFoundError as error:
        _LOG.warning("no baseline, as the training data cannot be read: %s", error)
    except _NoDepthError as error:  # but not other DataErrors: whether to skip damage is configured
        _LOG.warning(
            "no baseline, as the training data have no measured depth: %s. Set "
            "data.baseline_frames=0 to leave it out without this warning",
            error,
        )
    return None


class _NoDepthError(DataError):
    """Frames have no depth in metres that a median could be computed from."""


def _metric_depths(samples: Iterable[Mapping[str, Any]]) -> Iterator[np.ndarray]:
    for sample in samples:
        if "relative_disparity" in sample:  # depth is then its inverse, in no unit
            raise _NoDepthError(f"the label of {sample['id']} is relative disparity, not metres")
        yield sample["depth"]


def median_depth_map(depths: Iterable[np.ndarray], size: Size | None = None) -> np.ndarray:
    """Per-pixel median of the measured depths of many frames.

    Sizes may vary (KITTI's do, by recording day): every map is first resampled to one grid by
    nearest neighbour. A pixel that was never measured gets the median of its row, or of the whole
    map if the row is empty. All maps are kept in memory, 4 bytes per pixel: for a large training
    set, pass a few hundred frames spread over it.

    Args:
        depths: maps [h, w] in metres, non-finite or non-positive where unmeasured.
        size: (height, width) of the grid; None for the first map's.

    Returns:
        float32 [height, width], positive everywhere.

    Raises:
        DataError: if there are no maps, or none with a measurement.
    """
    maps = []
    for depth in depths:
        size = size or depth.shape
        depth = frames.resize_nearest(depth, size)
        measured = np.isfinite(depth) & (depth > 0)
        maps.append(np.where(measured, depth, np.inf).astype(np.float32))
    if not maps:
        raise _NoDepthError("no depth map was given, but the median needs at least one")
    ordered = np.stack(maps)
    ordered.sort(axis=0)  # unmeasured values are inf and come last
    count = np.isfinite(ordered).sum(axis=0)
    low, high = (
        np.take_along_axis(ordered, np.maximum(index, 0)[None], axis=0)[0]
        for index in ((count - 1) // 2, count // 2)
    )
    known = count > 0
    if not known.any():
        raise _NoDepthError(f"none of the {len(maps)} depth maps has a measurement")
    # For pixels that were always measured, count // 2 is within the stack; otherwise `low` is
    # unused.
    median = np.where(known, (low + high) / 2, np.nan)
    overall = np.median(median[known])
    for row, row_known in zip(median, known, strict=True):
        row[~row_known] = np.median(row[row_known]) if row_known.any() else overall
    return median.astype(np.float32)
