"""Evaluates a loaded model on an experiment's data."""

import hashlib
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffdepth_jax import config as config_lib
from diffdepth_jax import run_files
from diffdepth_jax.data import pipeline
from diffdepth_jax.data.experiment_data import ExperimentData
from diffdepth_jax.errors import ConfigError, MissingFileError, naming_file
from diffdepth_jax.evaluation.protocols import Protocol
from diffdepth_jax.evaluation.protocols.protocol import Prediction
from diffdepth_jax.evaluation.report import page
from diffdepth_jax.evaluation.run import baseline
from diffdepth_jax.evaluation.run.config import EvaluationConfig
from diffdepth_jax.evaluation.run.dataset import Shard, score_dataset
from diffdepth_jax.processes import Processes
from diffdepth_jax.typing import InputSpec

_PREDICTS = {"metric_depth": "depth", "relative_disparity": "disparity"}  # by the model's output


class Model(typing.Protocol):
    """What a model must provide; `inference.DepthModel` does."""

    @property
    def output(self) -> str: ...

    @property
    def input_spec(self) -> InputSpec: ...

    @property
    def predict(self) -> Callable[..., Any]: ...

    def check_num_samples(self, num_samples: int) -> None: ...

    def fingerprint(self, num_inference_steps: int | None) -> str: ...

    def is_recalibrated(self, num_inference_steps: int | None) -> bool: ...


def score_model(
    model: Model,
    data: ExperimentData,
    config: EvaluationConfig,
    workdir: Path,
    *,
    processes: Processes | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores a model as configured by an experiment; writes the files of `report.results`.

    Several `processes` divide the images, as in `dataset.score_dataset`.

    The baseline is the median depth map of the training data; it is left out, with a warning, if
    they are not available or have no measured depth.

    Returns:
        Results by the protocol's name, in the order of the config.
    """
    return _Scoring(model, data, config, workdir).run(processes=processes)


def score_checkpoint(
    model: Model,
    data: ExperimentData,
    config: EvaluationConfig,
    workdir: Path,
    *,
    shard: Shard | None = None,
) -> dict[str, dict[str, Any]]:
    """`score_model` for a model whose weights are final.

    Resumes an interrupted evaluation of the same weights and config in `workdir`, and also writes
    `report.html`.

    Args:
        model: as returned by `inference.load`.
        data, config: from an `Experiment`.
        workdir: directory for the results.
        shard: as in `dataset.score_dataset`.

    Returns:
        Results by the protocol's name; None for a shard.
    """
    scoring = _Scoring(model, data, config, workdir)
    results = scoring.run(fingerprint=scoring.fingerprint(), shard=shard)
    if results:
        scoring.save_page()
    return results


def settings(
    model: Model, config: EvaluationConfig
) -> tuple[tuple[Protocol, ...], dict[str, Any], dict[str, Any]]:
    """How to score a model according to a config.

    Returns:
        The protocols, adapted to the model's output; the options for `Model.predict`; and which of
        these to state with a result.

    Raises:
        ConfigError: if a protocol would treat relative predictions as metres, or if samples are
            requested but the model cannot draw them or does not predict metres.
    """
    predicts = _PREDICTS[model.output]
    if config.predicts not in (None, predicts):
        raise ConfigError(
            f"predicts is {config.predicts!r}, but the model predicts {predicts}: leave it out"
        )
    protocols = tuple(each.with_options(predicts=predicts) for each in config.build_all())
    for protocol in protocols:
        if model.output == "relative_disparity" and protocol.alignment == "none":
            raise ConfigError(
                f"the model predicts relative disparity, which protocol {protocol.name} would "
                "treat as 1/metres, because it does not align: use "
                "evaluation.alignment=lsq_disparity (--alignment=lsq_disparity), which fits scale "
                "and shift to each image's ground truth"
            )
    steps = config.num_inference_steps
    flip_tta = model.input_spec.flip_tta if config.flip_tta is None else config.flip_tta
    predicting: dict[str, Any] = {"flip_tta": flip_tta, "num_inference_steps": steps}
    stated = predicting | {"recalibrated": model.is_recalibrated(steps)}
    if config.flip_average != "depth":
        stated["flip_average"] = config.flip_average
    if config.num_samples is not None:
        model.check_num_samples(config.num_samples)
        if predicts != "depth":
            raise ConfigError(
                "num_samples measures whether a spread in metres predicts the error, but the model "
                "predicts relative disparity: leave it out (--num_samples)"
            )
        predicting["num_samples"] = stated["num_samples"] = config.num_samples
    predicting |= {"flip_average": config.flip_average, "batch_size": config.batch_size}
    return protocols, predicting, stated


class _Scoring:
    """A model and an experiment's evaluation data."""

    def __init__(
        self, model: Model, data: ExperimentData, config: EvaluationConfig, workdir: Path
    ) -> None:
        self._model, self._data, self._config, self._workdir = model, data, config, workdir
        self._protocols, self._predicting, self._stated = settings(model, config)
        self._samples = pipeline.evaluation_samples(
            data.evaluation, data.evaluation_limit, data.on_error
        )

    def fingerprint(self) -> str:
        """A hash of the weights and everything else that determines predictions and samples."""
        weights = self._model.fingerprint(self._config.num_inference_steps)
        # The same config selects other frames after files were added, removed or relisted.
        samples: Any = self._samples  # of `pipeline`'s class
        parts = (weights, self._data.evaluation, samples.selected())
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def run(self, **settings: Any) -> dict[str, dict[str, Any]]:
        found = score_dataset(
            self._predict,
            self._samples,
            self._protocols,
            self._workdir,
            baseline_depth=baseline.of_training(self._data),
            options=measured(self._data.evaluation) | self._stated,
            compare=self._config.compare,
            batch_size=self._config.batch_size,
            **settings,
        )
        return found or {}

    def save_page(self) -> None:
        page.save(self._workdir, self._protocols, self._predict, self._samples)

    def _predict(self, images: list[np.ndarray]) -> Sequence[Prediction]:
        found = self._model.predict(images, **self._predicting)
        if self._config.num_samples is None:
            return found
        return list(zip(*found, strict=True))


def measured(source: Any) -> dict[str, Any]:
    """A source's config, without paths, to state with a result."""
    fields = config_lib.to_mapping(source)
    return {"dataset": source.name} | {
        name: value
        for name, value in fields.items()
        if name not in ("name", "check_files") and not name.endswith("root")
    }


def run_directory(checkpoint: Path) -> Path:
    """The run directory, where results go by default, from RUN, RUN/checkpoints or
    RUN/checkpoints/STEP.

    Raises:
        FileError: if the checkpoint does not exist (`MissingFileError`) or cannot be read.
        ConfigError: if it does not belong to a run.
    """
    path = checkpoint.absolute()
    with naming_file(path, "read"):
        for run in (path, path.parent, path.parent.parent):
            if path.is_dir() and (run / run_files.CHECKPOINTS).is_dir():
                return run
        if not path.exists():
            raise MissingFileError(f"{checkpoint} does not exist")
    raise ConfigError(
        f"{checkpoint} is not in a run directory: set --workdir to the directory for results"
    )
