"""The baseline that needs no model: the training set's per-pixel median depth.

It is the best constant guess in absolute error, harder to beat than the mean map, and shows how
much of a metric the camera's fixed mounting alone explains.
"""

import logging
from collections.abc import Iterable

import numpy as np

from diffdepth_jax.data import pipeline
from diffdepth_jax.data.experiment_data import ExperimentData
from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation.protocols import frames
from diffdepth_jax.evaluation.protocols.frames import Size

_LOG = logging.getLogger(__name__)


def of_training(data: ExperimentData) -> np.ndarray | None:
    """`median_depth_map` of the training frames that an experiment asks for; None if it asks for
    none or, with a warning, if they are not available."""
    if not data.baseline_frames:
        return None
    try:
        training = pipeline.evaluation_samples(
            data.train.source, data.baseline_frames, data.on_error
        )
        depths = (sample["depth"] for sample in pipeline.readable(training))
        return median_depth_map(depths)
    except FileNotFoundError as error:
        _LOG.warning("no baseline, as the training data cannot be read: %s", error)
        return None


def median_depth_map(depths: Iterable[np.ndarray], size: Size | None = None) -> np.ndarray:
    """Per-pixel median of the measured depths of many frames.

    Sizes may vary (KITTI's do, by recording day): every map is first put on one grid by nearest
    pixels. A pixel that no frame measured gets the median of its row, or of the whole map where the
    row has none. All maps are kept, 4 bytes a pixel: for a large training set pass a few hundred
    frames spread over it.

    Args:
      depths: maps [h, w] in metres, not finite or not positive where nothing was measured.
      size: height and width of the grid; those of the first map when None.

    Returns:
      float32 [height, width], positive everywhere.

    Raises:
      DataError: if there is no map, or none with a measurement.
    """
    maps = []
    for depth in depths:
        size = size or depth.shape
        depth = frames.resize_nearest(depth, size)
        measured = np.isfinite(depth) & (depth > 0)
        maps.append(np.where(measured, depth, np.inf).astype(np.float32))
    if not maps:
        raise DataError("no depth map was given: the median of an empty training set is unknown")
    ordered = np.stack(maps)
    ordered.sort(axis=0)  # what was not measured comes last, as inf
    count = np.isfinite(ordered).sum(axis=0)
    low, high = (
        np.take_along_axis(ordered, np.maximum(index, 0)[None], axis=0)[0]
        for index in ((count - 1) // 2, count // 2)
    )
    known = count > 0
    if not known.any():
        raise DataError(f"none of the {len(maps)} depth maps holds a measurement")
    # Where a pixel was always measured count // 2 is within the stack, elsewhere low is unused.
    median = np.where(known, (low + high) / 2, np.nan)
    overall = np.median(median[known])
    for row, row_known in zip(median, known, strict=True):
        row[~row_known] = np.median(row[row_known]) if row_known.any() else overall
    return median.astype(np.float32)
