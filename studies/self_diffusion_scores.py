"""Scores of the runs of `studies/self_diffusion.py` on the held-out streets, by exact depth."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import self_diffusion_runs as runs

from diffdepth_jax import atomic, inference
from diffdepth_jax.data import pipeline
from diffdepth_jax.evaluation import boundary, metrics, uncertainty
from diffdepth_jax.evaluation.run import baseline

FILE = "scores.json"
SAMPLES = 8
RECALIBRATION_IMAGES = 32
STEPS = (2, 5, 10, 15, 20)  # numbers of steps tried with models trained for another
DEPTH_RANGE = (1e-3, 80.0)
METRICS = ("abs_rel", "rmse", "silog", "delta1")
EDGES = (
    *("boundary_f1", "boundary_precision", "boundary_recall"),
    *(f"boundary_f1_{ratio:.2f}" for ratio in boundary.RATIOS),
    *("boundary_precision_1.15", "boundary_recall_1.15"),
)
_SHARES = tuple(name for name in uncertainty.METRICS if name not in ("spread", "ause"))
# In metres and in logarithms: relative spread against relative error, which does not grow with
# depth.
SPREAD = (
    *("spread", *_SHARES),
    *(f"log_{name}" for name in _SHARES if name != "rank_correlation_relative"),
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a trained network predicts.

    Attributes:
        steps: of the sampler; None: the trained number.
        recalibrated: with batch statistics for that number of steps.
        samples: number of samples to average.
        flip_tta: averages with the mirrored image's prediction.
    """

    steps: int | None = None
    recalibrated: bool = False
    samples: int = 1
    flip_tta: bool = False


def settings(training: runs.Training, model: inference.DepthModel) -> Iterator[Setting]:
    """All settings in which a training is scored."""
    yield Setting()
    if not training.method.startswith(("regression", "self")):
        return
    yield Setting(flip_tta=True)
    if not model.denoises:
        return
    yield Setting(samples=SAMPLES)
    if training.method in ("self", "self_20") and training.depth == "dense":
        for steps in STEPS:
            if steps != model.model.num_inference_steps:
                yield Setting(steps)
                yield Setting(steps, recalibrated=True)


def score(training: runs.Training, workdir: Path) -> list[dict[str, Any]]:
    """One row per setting; see `kept`."""

    def rows(model: inference.DepthModel) -> Iterator[dict[str, Any]]:
        for setting in settings(training, model):
            row = dataclasses.asdict(setting) | {"asked_steps": setting.steps}
            own = model.denoises and model.model.num_inference_steps
            row["steps"] = setting.steps or own or None
            yield row | score_setting(model, setting)

    return kept(workdir / training.name, FILE, rows)


def kept(
    run: Path, name: str, score_model: Callable[[inference.DepthModel], Iterable[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Rows of a run, kept in a file of this name; computed only if that is missing."""
    if (run / name).exists():
        return json.loads((run / name).read_text())
    record = json.loads((run / runs.RECORD).read_text())
    rows = [record | row for row in score_model(inference.load(run))]
    atomic.write_text(run / name, json.dumps(rows))
    return rows


def score_setting(model: inference.DepthModel, setting: Setting) -> dict[str, Any]:
    """Mean metrics over the held-out frames, cost per prediction, and sparsification curves."""
    if setting.recalibrated:
        model = model.recalibrate(_training_images(), setting.steps)
    images = [sample["image"] for sample in held_out()]
    predict = functools.partial(
        model.predict, num_inference_steps=setting.steps, flip_tta=setting.flip_tta
    )
    if setting.samples > 1:
        predict = functools.partial(predict, num_samples=setting.samples)
    predict(images[:1])
    start = time.process_time()
    predictions = predict(images)
    cost = (time.process_time() - start) / len(images)
    spreads = None
    if setting.samples > 1:
        predictions, spreads = predictions
    elif setting.flip_tta:  # The two averaged predictions have a spread too.
        single = model.predict(images, num_inference_steps=setting.steps, flip_tta=False)
        pairs = zip(single, predictions, strict=True)
        spreads = [np.sqrt(2) * np.abs(one - mean) for one, mean in pairs]
    return {"predict_ms": round(1000 * cost, 1)} | mean_scores(predictions, spreads)


def score_ensemble(trainings: Sequence[runs.Training], workdir: Path) -> dict[str, Any]:
    """A row for the mean of several networks that differ in their seeds."""
    images = [sample["image"] for sample in held_out()]
    models = [inference.load(workdir / training.name) for training in trainings]
    found = np.stack([model.predict(np.stack(images), flip_tta=False) for model in models])
    row = _row_beside(trainings, workdir, "ensemble")
    row |= {"seed": "+".join(str(each.seed) for each in trainings), "samples": len(trainings)}
    return row | mean_scores(list(found.mean(0)), list(found.std(0, ddof=1)))


def score_grained(seed: int, workdir: Path) -> dict[str, Any]:
    """A row for regression with the grain of self-diffusion's samples of another frame.

    If such a prediction finds as many contours, they come from grain and not from what diffusion
    knows about the frame. The grain is the ratio of two samples, to the power that gives it the
    variance of one.
    """
    trainings = [runs.Training(method, "dense", seed) for method in ("regression", "self")]
    smooth, drawn = (inference.load(workdir / training.name) for training in trainings)
    images = np.stack([sample["image"] for sample in held_out()])
    samples = [drawn.predict(images, seed=number, flip_tta=False) for number in (1, 2)]
    grain = (samples[0] / samples[1]) ** np.sqrt(0.5)
    depths = smooth.predict(images, flip_tta=False) * np.roll(grain, 1, axis=0)
    return _row_beside(trainings, workdir, "grain") | mean_scores(list(depths))


def _row_beside(trainings: Sequence[runs.Training], workdir: Path, suffix: str) -> dict[str, Any]:
    records = [json.loads((workdir / each.name / runs.RECORD).read_text()) for each in trainings]
    return (
        records[0]
        | dataclasses.asdict(Setting())
        | {
            "asked_steps": None,
            "method": f"{trainings[0].method}_{suffix}",
            "cpu_seconds": sum(record["cpu_seconds"] for record in records),
        }
    )


def mean_scores(
    predictions: list[np.ndarray], spreads: list[np.ndarray] | None = None
) -> dict[str, Any]:
    """Means over the held-out frames, for each value over the frames that have it."""
    found: dict[str, list[Any]] = {}
    for index, (sample, prediction) in enumerate(zip(held_out(), predictions, strict=True)):
        target = sample["depth"]
        valid_mask = metrics.valid_pixels(target, *DEPTH_RANGE)
        prediction = metrics.clip(prediction, *DEPTH_RANGE)
        scores: dict[str, Any] = metrics.compute(prediction, target, valid_mask, METRICS)
        edges = boundary.compute(prediction, target, valid_mask)
        scores |= {name: edges[name] for name in EDGES if name in edges}
        if spreads is not None:
            scores |= _judged_spread(spreads[index], prediction, target, valid_mask)
        for name, value in scores.items():
            found.setdefault(name, []).append(value)
    return {name: np.mean(values, 0).tolist() for name, values in found.items()}


def _judged_spread(
    spread: np.ndarray, prediction: np.ndarray, target: np.ndarray, valid_mask: np.ndarray
) -> dict[str, Any]:
    judged = uncertainty.compute(spread, prediction, target, valid_mask)
    in_logs = uncertainty.compute(
        spread / prediction, np.log(prediction), np.log(np.where(valid_mask, target, 1)), valid_mask
    )
    found = judged.metrics | {f"log_{name}": value for name, value in in_logs.metrics.items()}
    curves = {f"curve_{name}": curve for name, curve in judged.curves.items()}
    return {name: found[name] for name in SPREAD if name in found} | curves


def baseline_scores() -> dict[str, Any]:
    """Scores of the training frames' median depth map, the best constant prediction."""
    training = runs.Training("regression", "dense", 0).experiment()
    return mean_scores([baseline.of_training(training.data)] * len(held_out()))


@functools.cache
def held_out() -> list[Mapping[str, Any]]:
    data = runs.Training("regression", "dense", 0).experiment().data
    return list(pipeline.evaluation_samples(data.evaluation))


@functools.cache
def _training_images() -> list[np.ndarray]:
    data = runs.Training("regression", "dense", 0).experiment().data
    samples = pipeline.evaluation_samples(data.train.source, RECALIBRATION_IMAGES)
    return [sample["image"] for sample in samples]
