"""Scores saved depth maps of any model against a data set in its official layout."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from diffdepth_jax.data import pipeline
from diffdepth_jax.data.experiment_data import ExperimentData
from diffdepth_jax.evaluation.protocols import Protocol
from diffdepth_jax.evaluation.report import page
from diffdepth_jax.evaluation.run import baseline, files, predictions
from diffdepth_jax.evaluation.run.checkpoint import measured
from diffdepth_jax.evaluation.run.dataset import score_dataset


def score_source_predictions(
    directory: str | os.PathLike,
    data: ExperimentData,
    protocols: Sequence[Protocol],
    workdir: str | os.PathLike,
    png_scale: float = 256.0,
    *,
    compare: Mapping[str, str] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Scores predictions for the frames of `data.evaluation`; writes the files of
    `dataset.score_dataset` and `report.html`.

    A prediction is named after its frame's id or image: `predict.py` keeps the images' folders
    below their common one. Only the folders needed to distinguish frames are required.

    Args:
        directory: folder or pattern of the predictions.
        data: from an `Experiment`.
        protocols: how to score.
        workdir: directory for the results.
        png_scale: PNG value per metre of predictions.
        compare, progress: as in `score_dataset`.

    Raises:
        DataError: if frames have no prediction or several; names a few.
        UserError: as in `predictions.score_predictions`.
    """
    predictions.check_scale("png_scale", png_scale)
    found = files.find(directory)
    samples = pipeline.evaluation_samples(data.evaluation, data.evaluation_limit, data.on_error)
    names = files.match([_names(samples, index) for index in range(len(samples))], found)
    options = measured(data.evaluation) | predictions.report_unused(found, names)
    options["png_scale"] = png_scale
    paired = _Predicted(samples, names, found, png_scale)
    results = score_dataset(
        None,
        paired,
        protocols,
        workdir,
        baseline_depth=baseline.of_training(data),
        options=options,
        compare=compare,
        progress=progress,
    )
    page.save(Path(workdir).expanduser(), protocols, None, paired)
    return results or {}  # None only for shards


def _names(samples: Sequence[Mapping[str, Any]], index: int) -> list[str]:
    """Possible names of a frame's prediction: its id, and its image's path."""
    frame = samples.frame(index)  # type: ignore[attr-defined]  # as `pipeline` makes them
    if frame is None:  # the source does not list files, so the frame itself must be read
        return [_without_suffix(samples[index]["id"])]
    return [_without_suffix(frame.id), _without_suffix(os.path.abspath(frame.image)).lstrip("/")]


def _without_suffix(name: str) -> str:
    path = PurePath(name)
    known = path.suffix.lower() in (".png", ".jpg", ".jpeg", ".npy", ".h5")
    return (path.with_suffix("") if known else path).as_posix()


class _Predicted(Sequence[Mapping[str, Any]]):
    """Samples of a source with their predictions."""

    def __init__(
        self,
        samples: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        found: files.DepthFiles,
        png_scale: float,
    ):
        self._samples = samples
        self._names = names
        self._found = found
        self._png_scale = png_scale

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Mapping[str, Any]:  # type: ignore[override]  # no slices
        sample, name = self._samples[index], self._names[index]
        if "error" in sample:
            return sample
        if name in self._found.unusable:
            return {"id": sample["id"], "error": self._found.unusable[name]}
        prediction = predictions.read_prediction(self._found, name, self._png_scale)
        return {**sample, "prediction": prediction}
