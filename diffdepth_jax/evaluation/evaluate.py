"""From predictions to `metrics.json` and `per_image.csv`.

    metrics.json   {"protocol", "options", "num_images", "num_skipped", "num_nonfinite",
                    "num_clipped", "metrics", "baseline", "reported"}
    per_image.csv  id, num_valid, num_nonfinite, num_clipped, mean_depth and the metrics

`num_images` counts the images that were scored, `num_skipped` those without a valid pixel, which
have empty metrics in the CSV and no part in the means. `metrics` and `baseline` hold means over
images (`baseline` is empty where no training set is known); `reported` holds what other people
reported under the same options, with their source. One image at a time is in memory; files appear
whole, at the end, or not at all.
"""

import contextlib
import csv
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffdepth_jax import atomic
from diffdepth_jax.evaluation import frames, metrics, protocols
from diffdepth_jax.evaluation.protocols import Protocol, Score

METRICS_FILE = "metrics.json"
PER_IMAGE_FILE = "per_image.csv"
_COUNTS = ("num_valid", "num_nonfinite", "num_clipped", "mean_depth")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What `config.evaluation` may say; an option that is None is the protocol's own.

    Attributes:
      protocol: a key of `protocols.PROTOCOLS`.
      crop, crop_reference, min_depth, max_depth, alignment, disparity_floor: as in
        `protocols.Protocol`; max_depth=inf lifts a cap.
      flip_tta: average each prediction with the one of the mirrored image.
      num_inference_steps: denoising steps, where the model has such; its own number when None.
    """

    protocol: str = "kitti_eigen"
    crop: str | None = None
    crop_reference: str | None = None
    min_depth: float | None = None
    max_depth: float | None = None
    alignment: str | None = None
    disparity_floor: float | None = None
    flip_tta: bool = False
    num_inference_steps: int | None = None

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> Protocol:
        """The protocol with its options; ValueError where they do not exist."""
        # Not prediction_frame and resize_prediction: a model's predictions show what it was fed.
        options = {name: value for name, value in vars(self).items() if name in protocols.OPTIONS}
        return protocols.get(self.protocol, **options)


@dataclasses.dataclass(frozen=True)
class Case:
    """One image to score: its name, the prediction and the ground truth's full frame."""

    id: str
    prediction: np.ndarray
    depth: np.ndarray


def evaluate(
    predict_fn: Callable[[np.ndarray], np.ndarray],
    samples: Iterable[Mapping[str, Any]],
    protocol: Protocol,
    workdir: str | os.PathLike,
    *,
    baseline_depth: np.ndarray | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Predicts, scores, and writes `metrics.json` and `per_image.csv` into `workdir`.

    Args:
      predict_fn: image uint8 [h, w, 3] to depth [h, w] in metres, of the same size (or what the
        protocol's alignment makes metres of). It is fed `protocol.prepare(image)`.
      samples: with `image`, `depth` float [h, w] in metres (0 = not measured) and `id`.
      protocol: how to score.
      workdir: made if missing, and gone again if nothing comes of it.
      baseline_depth: the training set's median map (`baseline.median_depth_map`), for full frames;
        put on each frame's size by nearest pixels and scored alike, without any alignment.
      options: settings of the prediction, such as `flip_tta`, to state beside the result.
      progress: show a progress bar.

    Returns:
      What `metrics.json` holds.

    Raises:
      ValueError: naming the image, for what cannot be scored; or if nothing was scored.
      OSError: if `workdir` cannot be written, before anything is predicted.
    """

    def cases() -> Iterator[Case]:
        for sample in samples:
            with _naming(sample["id"]):
                image = protocol.prepare(sample["image"])
            yield Case(sample["id"], predict_fn(image), sample["depth"])

    total = len(samples) if hasattr(samples, "__len__") else None
    return score_cases(
        tqdm(cases(), "evaluate", total, unit=" images", disable=not progress, dynamic_ncols=True),
        protocol,
        workdir,
        baseline_depth=baseline_depth,
        options=options,
    )


def score_cases(
    cases: Iterable[Case],
    protocol: Protocol,
    workdir: str | os.PathLike,
    *,
    baseline_depth: np.ndarray | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores predictions that are already there; see `evaluate` for the rest."""
    with _made(Path(workdir).expanduser()) as directory:
        rows, result = _score(cases, protocol, baseline_depth, options or {})
        atomic.write_text(directory / PER_IMAGE_FILE, _csv(rows))
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        atomic.write_text(directory / METRICS_FILE, text)
    return result


def _score(
    cases: Iterable[Case],
    protocol: Protocol,
    baseline_depth: np.ndarray | None,
    options: Mapping[str, Any],
) -> tuple[list[list[Any]], dict[str, Any]]:
    """Rows of the CSV, and the result."""
    unaligned = dataclasses.replace(protocol, alignment="none", disparity_floor=None)
    rows, totals, baseline_totals = [], _Means(), _Means()
    for case in cases:
        with _naming(case.id):
            score = protocol.score(case.prediction, case.depth)
            if baseline_depth is not None:
                guess = frames.resize_nearest(baseline_depth, case.depth.shape)
                baseline_totals.add(unaligned.score(guess, case.depth))
        totals.add(score)
        rows.append(_row(case.id, score))
    if not totals.num_images:
        raise ValueError(
            f"nothing to score: none of {len(rows)} images has a ground-truth pixel between "
            f"{protocol.min_depth} and {protocol.max_depth} m in the {protocol.crop} crop"
        )
    options = protocol.options | dict(options)
    return rows, {
        "protocol": protocol.name,
        "options": options,
        "num_images": totals.num_images,
        "num_skipped": len(rows) - totals.num_images,
        "num_nonfinite": totals.num_nonfinite,
        "num_clipped": totals.num_clipped,
        "metrics": totals.means(),
        "baseline": baseline_totals.means(),
        "reported": [dataclasses.asdict(each) for each in protocol.comparable(options)],
    }


class _Means:
    """Sums over images, so that no image's arrays are kept."""

    def __init__(self) -> None:
        self.num_images = self.num_nonfinite = self.num_clipped = 0
        self._sums = dict.fromkeys(metrics.METRICS, 0.0)

    def add(self, score: Score) -> None:
        if not score.num_valid:
            return
        self.num_images += 1
        self.num_nonfinite += score.num_nonfinite
        self.num_clipped += score.num_clipped
        for name, value in score.metrics.items():
            self._sums[name] += value

    def means(self) -> dict[str, float]:
        if not self.num_images:
            return {}
        return {name: total / self.num_images for name, total in self._sums.items()}


@contextlib.contextmanager
def _made(directory: Path) -> Iterator[Path]:
    """A directory that can be written; what had to be made of it is removed if work in it fails."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        yield directory
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Adds the image's id to a ValueError raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"image {name!r}: {error}") from error


def _row(name: str, score: Score) -> list[Any]:
    counts = [getattr(score, column) for column in _COUNTS]
    if not score.num_valid:
        return [name, 0, 0, 0, *[""] * (1 + len(metrics.METRICS))]
    return [name, *counts, *(score.metrics[column] for column in metrics.METRICS)]


def _csv(rows: Iterable[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([["id", *_COUNTS, *metrics.METRICS], *rows])
    return text.getvalue()
