"""Scores saved depth maps of any model against a folder of ground truth.

Both may be 16-bit PNG (metres times a scale, 0 = none) or `.npy` (metres), and are matched by name
(`files.match`). Predictions without ground truth are left out and counted. Only needs NumPy and
Pillow. `source_predictions` scores against a data set instead.
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffdepth_jax.data import io
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.evaluation.protocols import Protocol
from diffdepth_jax.evaluation.run import files
from diffdepth_jax.evaluation.run.dataset import score_dataset
from diffdepth_jax.evaluation.run.files import DepthFiles

_LOG = logging.getLogger(__name__)


def score_predictions(
    predictions: str | os.PathLike,
    ground_truth: str | os.PathLike,
    protocols: Sequence[Protocol],
    workdir: str | os.PathLike,
    png_scale: float = 256.0,
    ground_truth_png_scale: float | None = None,
    *,
    compare: Mapping[str, str] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Scores one folder against another; writes the files of `dataset.score_dataset` and
    `report.html`.

    Args:
        predictions, ground_truth: a folder, a file, or a pattern such as `out/*.npy`. Every ground
            truth file needs a prediction with the same name.
        protocols: how to score.
        workdir: directory for the results.
        png_scale: PNG value per metre: 256 as in KITTI, 1000 for millimetres.
        ground_truth_png_scale: the same for ground truth, if it differs.
        compare: other results to compare with; see `dataset.score_dataset`.
        progress: whether to show a progress bar.

    Returns:
        The content of each `metrics.json` by the protocol's name; its options include the kind of
        files and the number of predictions without ground truth.

    Raises:
        MissingFileError: for a folder that is missing or has no depth maps.
        DataError: if ground truth has no prediction, a file is not a depth map, or sizes do not
            match; names the files.
        ConfigError: for an invalid scale.
    """
    if ground_truth_png_scale is None:
        ground_truth_png_scale = png_scale
    check_scale("png_scale", png_scale)
    check_scale("ground_truth_png_scale", ground_truth_png_scale)
    predicted, measured = files.find(predictions), files.find(ground_truth)
    wanted = sorted(measured.paths)
    names = files.match([[name] for name in wanted], predicted)
    used = report_unused(predicted, names)
    for cause in measured.unusable.values():
        _LOG.warning("left out: %s", cause)
    options = {
        "predictions": used["predictions"],
        "ground_truth": measured.kinds,
        "png_scale": png_scale,
        "ground_truth_png_scale": ground_truth_png_scale,
        **used,
    }
    from diffdepth_jax.evaluation.report import page  # imported here, as it needs Matplotlib

    samples = _Pairs(predicted, measured, list(zip(names, wanted, strict=True)), options)
    results = score_dataset(
        None, samples, protocols, workdir, options=options, compare=compare, progress=progress
    )
    page.save(Path(workdir).expanduser(), protocols, None, samples)
    return results or {}  # None only for shards


def check_scale(name: str, scale: float) -> None:
    """Raises ConfigError unless a number of stored units per metre is valid."""
    if not (scale > 0 and math.isfinite(scale)):
        raise ConfigError(f"{name} is {scale}; it must be positive and finite")


def report_unused(found: DepthFiles, names: Sequence[str]) -> dict[str, Any]:
    """What to state about predictions with a result, given the `names` with ground truth; warns
    about unreadable ones without."""
    for name in found.unusable.keys() - set(names):
        _LOG.warning("left out: %s", found.unusable[name])
    return {
        "predictions": DepthFiles(
            found.source, {name: found.paths[name] for name in names if name in found.paths}
        ).kinds,
        "predictions_without_ground_truth": len(found.paths.keys() - set(names)),
    }


def read_prediction(found: DepthFiles, name: str, png_scale: float) -> np.ndarray:
    """A depth map float64 [h, w] in metres; errors as in `io.read_depth_array`."""
    return io.read_depth_array(found.paths[name], png_scale, np.float64)


class _Pairs(Sequence[Mapping[str, Any]]):
    """Samples with their prediction, read on demand."""

    def __init__(
        self,
        predicted: DepthFiles,
        measured: DepthFiles,
        pairs: Sequence[tuple[str, str]],
        options: Mapping[str, Any],
    ):
        self._predicted = predicted
        self._measured = measured
        self._pairs = pairs
        self._options = options

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Mapping[str, Any]:  # type: ignore[override]  # no slices
        predicted, measured = self._pairs[index]
        if predicted in self._predicted.unusable:
            return {"id": measured, "error": self._predicted.unusable[predicted]}
        scales = self._options["png_scale"], self._options["ground_truth_png_scale"]
        return {
            "id": measured,
            "prediction": read_prediction(self._predicted, predicted, scales[0]),
            "depth": read_prediction(self._measured, measured, scales[1]),
        }
