"""What can be checked before an evaluation, or a long training, begins."""

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

_FRAMES = 3  # of each source, whose depth is checked
_FEW = 0.1  # share of measured pixels within the range, below which something is wrong
_SCALES = (1.0, 100.0, 256.0, 1000.0)  # stored units per metre that are in use
_LOG = logging.getLogger(__name__)


def check_data(data: ExperimentData, config: EvaluationConfig, *, labelled: bool = True) -> None:
    """Reads a few frames and the results to compare with, so that errors about them do not come at
    the end of a long training.

    Args:
      data: of the experiment.
      config: how it is evaluated.
      labelled: whether the depth of the training data is the label.

    Raises:
      DataError: for evaluation frames that a protocol cannot use; for depth that lies entirely
        outside the range of a protocol or of the training, as in a wrong unit; for boundary metrics
        on sparse depth; or for results that cannot be compared with ours.
    """
    sample = first_evaluation_sample(data)
    protocols = config.build_all()
    for protocol in protocols:
        protocol.prepare(sample["image"])
        comparisons.read(config.compare, protocol, {})
    samples = _few(data.evaluation, data)
    for protocol in protocols:
        _check_range(
            (protocol.truth(sample)[0] for sample in samples),
            (protocol.min_depth, protocol.max_depth),
            f"the protocol {protocol.name}",
            data.evaluation,
            "data.evaluation",
        )
        for sample in samples if protocol.boundary else ():
            depth, _ = protocol.truth(sample)
            with naming_image(sample["id"]):
                check_dense(metrics.valid_pixels(depth, protocol.min_depth, protocol.max_depth))
    if data.train.depth_range is not None and labelled:
        try:
            samples = _few(data.train.source, data)
        except FileNotFoundError:  # Training, if there is any, reports it better.
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
    """Refuses depth maps whose measurements lie outside a range, warns where nearly all do."""
    measured = np.concatenate([depth[np.isfinite(depth) & (depth > 0)] for depth in depths])
    if not measured.size:
        _LOG.warning("%s: the first frames have no measured depth at all", field)
        return
    share = metrics.valid_pixels(measured, *depth_range).mean()
    if share >= _FEW:
        return
    low, middle, high = (f"{depth:.5g}" for depth in np.percentile(measured, (1, 50, 99)))
    message = (
        f"{field}: in a few frames {share:.0%} of the measured pixels lie in the range "
        f"{depth_range[0]:g} to {depth_range[1]:g} m of {whose}; they are {low} to {high} m, half "
        f"of them below {middle} m. {_remedy(measured, depth_range, source, field)}"
    )
    if share > 0:
        _LOG.warning("%s", message)
        return
    raise DataError(message)


def _remedy(measured: np.ndarray, depth_range: tuple[float, float], source: Any, field: str) -> str:
    """Which scale would bring the depths into the range."""
    given = getattr(source, "depth_scale", None) or 1.0
    likely = [
        scale
        for scale in _SCALES
        if metrics.valid_pixels(measured * given / scale, *depth_range).mean() > 0.5
        and scale != given
    ]
    if hasattr(source, "depth_scale") and likely:
        return (
            f"Is {field}.depth_scale, now {source.depth_scale}, rather "
            f"{' or '.join(f'{scale:g}' for scale in likely)}?"
        )
    return "Is their unit metres, and does the range belong to these data?"
