"""Checks before an evaluation, or a long training run, begins."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from diffdepth_jax.data import pipeline
from diffdepth_jax.data.experiment_data import ExperimentData, first_evaluation_sample
from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation import metrics
from diffdepth_jax.evaluation.protocols.protocol import naming_image
from diffdepth_jax.evaluation.protocols.score import check_dense
from diffdepth_jax.evaluation.report import comparisons
from diffdepth_jax.evaluation.run.config import EvaluationConfig

_FRAMES = 3  # per source, whose depth is checked
_FEW = 0.1  # minimum plausible fraction of measured pixels within the range
_SCALES = (1.0, 100.0, 256.0, 1000.0)  # common numbers of stored units per metre
_LOG = logging.getLogger(__name__)


def check_data(data: ExperimentData, config: EvaluationConfig, *, labelled: bool = True) -> None:
    """Reads a few frames and the results to compare with, before a long training run.

    Args:
        data: the experiment's data config.
        config: the evaluation config.
        labelled: whether the depth of the training data is the label.

    Raises:
        DataError: if a protocol cannot use the evaluation frames; if all depth is outside the range
            of a protocol or of training, for example because of a wrong unit; if boundary metrics
            are requested for sparse depth; or if results are not comparable.
    """
    sample = first_evaluation_sample(data)
    protocols = config.build_all()
    for protocol in protocols:
        protocol.prepare(sample["image"])
        comparisons.read(config.compare, protocol, {})
    samples = _few(data.evaluation, data) or [sample]
    for protocol in protocols:
        _check_range(
            (protocol.truth(sample)[0] for sample in samples),
            (protocol.min_depth, protocol.max_depth),
            f"the protocol {protocol.name}",
            data.evaluation,
            "data.evaluation",
        )
        for each in samples if protocol.boundary else ():
            depth, _ = protocol.truth(each)
            with naming_image(each["id"]):
                check_dense(metrics.valid_pixels(depth, protocol.min_depth, protocol.max_depth))
    if data.train.depth_range is not None and labelled:
        try:
            samples = _few(data.train.source, data)
        except FileNotFoundError:  # training, if there is any, reports it better
            return
        _check_range(
            (sample["depth"] for sample in samples),
            data.train.depth_range,
            "data.train.depth_range",
            data.train.source,
            "data.train.source",
        )


def _few(source: Any, data: ExperimentData) -> list[Mapping[str, Any]]:
    samples = pipeline.evaluation_samples(source, _FRAMES, data.on_error)
    return list(pipeline.readable(samples))


def _check_range(
    depths: Iterable[np.ndarray],
    depth_range: tuple[float, float],
    whose: str,
    source: Any,
    field: str,
) -> None:
    """Rejects depth maps with all measurements outside a range, and warns if nearly all are."""
    maps = [depth[np.isfinite(depth) & (depth > 0)] for depth in depths]
    if not maps:  # unreadable frames are skipped
        _LOG.warning(
            "%s: none of a few frames can be read, so it is not checked whether depth is in the "
            "range of %s",
            field,
            whose,
        )
        return
    measured = np.concatenate(maps)
    if not measured.size:
        _LOG.warning("%s: the first frames have no measured depth", field)
        return
    share = metrics.valid_pixels(measured, *depth_range).mean()
    if share >= _FEW:
        return
    low, middle, high = (f"{depth:.5g}" for depth in np.percentile(measured, (1, 50, 99)))
    message = (
        f"{field}: in the first frames, only {share:.0%} of the measured pixels are in the range "
        f"{depth_range[0]:g} to {depth_range[1]:g} m of {whose}; depths are {low} to {high} m with "
        f"median {middle} m. {_remedy(measured, depth_range, source, field)}"
    )
    if share > 0:
        _LOG.warning("%s", message)
        return
    raise DataError(message)


def _remedy(measured: np.ndarray, depth_range: tuple[float, float], source: Any, field: str) -> str:
    """Suggests a scale that would bring depths into the range."""
    given = getattr(source, "depth_scale", None) or 1.0
    likely = [
        scale
        for scale in _SCALES
        if metrics.valid_pixels(measured * given / scale, *depth_range).mean() > 0.5
        and scale != given
    ]
    if hasattr(source, "depth_scale") and likely:
        return (
            f"Should {field}.depth_scale, now {source.depth_scale}, be "
            f"{' or '.join(f'{scale:g}' for scale in likely)}?"
        )
    return "Is the unit metres, and is the range right for these data?"
