"""The evaluation of a model: every image predicted once, scored, and its row kept.

One image at a time is in memory; of finished ones only their rows are kept. Results appear whole,
at the end; `results` says what they hold. Where a fingerprint of the model is given, the rows are
also kept on disk until then: an evaluation that was interrupted goes on where it was, and several
processes can share one (`shard`).
"""

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffdepth_jax.evaluation import comparisons, frames, protocols, results
from diffdepth_jax.evaluation.rows import Journal, Row
from diffdepth_jax.evaluation.scoring import Predicts, Protocol

PredictFn = Callable[[np.ndarray], np.ndarray]
Shard = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What `config.evaluation` may say; an option that is None is the protocol's own.

    Attributes:
      protocol: a key of `protocols.PROTOCOLS`, or several, joined by commas, for one pass over the
        images; options then go to all of them.
      resize_input, crop, crop_reference, min_depth, max_depth, predicts, alignment,
        disparity_floor, metric_set: as in `scoring.Protocol`; max_depth=inf lifts a cap.
      flip_tta: average each prediction with the one of the mirrored image.
      flip_average: of their `depth`, or of their `inverse_depth` with ramps at the borders, which
        is md4all's `_pp`; see `flipping`.
      num_inference_steps: denoising steps, where the model has such; its own number when None.
      every_steps: how often a run is evaluated while it is trained; None for at its end only.
      compare: other results to show beside these: a name to a `metrics.json` or its directory.
    """

    protocol: str = "kitti_eigen"
    resize_input: str | None = None
    crop: str | None = None
    crop_reference: str | None = None
    min_depth: float | None = None
    max_depth: float | None = None
    predicts: Predicts | None = None
    alignment: str | None = None
    disparity_floor: float | None = None
    metric_set: str | None = None
    flip_tta: bool = False
    flip_average: str = "depth"
    num_inference_steps: int | None = None
    every_steps: int | None = None
    compare: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.build_all()
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"every_steps is {self.every_steps}; it must be at least 1 or None")
        if self.flip_average not in ("depth", "inverse_depth"):
            raise ValueError(
                f"flip_average is {self.flip_average!r}; it must be depth or inverse_depth"
            )
        if self.flip_average != "depth" and not self.flip_tta:
            raise ValueError(
                f"flip_average is {self.flip_average!r}, which goes with flip_tta=True"
            )

    def build(self) -> Protocol:
        """The (first) protocol with its options."""
        return self.build_all()[0]

    def build_all(self) -> tuple[Protocol, ...]:
        """The protocols with their options; ValueError where those do not exist."""
        # Not prediction_frame and resize_prediction: a model's predictions show what it was fed.
        options = {name: value for name, value in vars(self).items() if name in protocols.OPTIONS}
        return protocols.get_all(self.protocol, **options)


def evaluate(
    predict_fn: PredictFn | None,
    samples: Iterable[Mapping[str, Any]],
    protocol: Protocol,
    workdir: str | os.PathLike,
    **settings: Any,
) -> dict[str, Any] | None:
    """`evaluate_all` under one protocol; returns its result."""
    found = evaluate_all(predict_fn, samples, (protocol,), workdir, **settings)
    return found and found[protocol.name]


def evaluate_all(
    predict_fn: PredictFn | None,
    samples: Iterable[Mapping[str, Any]],
    protocols: Sequence[Protocol],
    workdir: str | os.PathLike,
    *,
    baseline_depth: np.ndarray | None = None,
    options: Mapping[str, Any] | None = None,
    compare: Mapping[str, str | os.PathLike] | None = None,
    fingerprint: str | None = None,
    shard: Shard | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]] | None:
    """Predicts every image once, scores it under all protocols, and writes the results.

    Args:
      predict_fn: image uint8 [h, w, 3] to depth [h, w] in metres, of the same size (or what the
        protocol's alignment makes metres of). It is fed `protocol.prepare(image)`, once for all
        protocols that are fed alike. None where the samples hold their `prediction`.
      samples: with `image`, `depth` float [h, w] in metres (0 = not measured), `id` and perhaps
        `condition`; what else a protocol needs is said there. An image that cannot be read may be
        given as `{"id": ..., "error": why}`: it is counted and listed.
      protocols: how to score; of different names.
      workdir: gets the two files, or with several protocols a folder of them for each, by its name.
        Made if missing, and gone again if nothing comes of it.
      baseline_depth: the training set's median map (`baseline.median_depth_map`), for full frames;
        put on each frame's size by nearest pixels and scored alike, without any alignment.
      options: settings of the prediction, such as `flip_tta`, to state beside the result; `dataset`
        among them, a source's name, tells which reported numbers belong to the data.
      compare: further results to put beside these: a name to a `metrics.json`, or to the directory
        that such results were written to.
      fingerprint: of whatever decides the predictions and the samples beyond what is given here
        (weights, data config). With it finished images are kept in `workdir` until all are done.
      shard: (index, count): do only every count-th image, starting with the index-th, keep the rows
        and write no result; that is for the same call without a shard, which takes up the rows of
        all and does what is missing.
      progress: show a progress bar.

    Returns:
      What each `metrics.json` holds, by the protocol's name; None for a shard.

    Raises:
      ValueError: naming the image, for what cannot be scored; if nothing was scored; or for a
        comparison with something else.
      OSError: if `workdir` cannot be written or a comparison not read, before anything is
        predicted.
    """
    if shard is not None and (fingerprint is None or not 0 <= shard[0] < shard[1]):
        raise ValueError(
            f"shard is {shard}; it must be (index, count) with 0 <= index < count, and needs a "
            "fingerprint to find the rows of the others by"
        )
    options = dict(options or {})
    others = {each.name: comparisons.read(compare or {}, each, options) for each in protocols}
    with _made(Path(workdir).expanduser()) as directory:
        if fingerprint is None:
            finished, journal = {}, None
        else:
            parts = [fingerprint, options, [(p.name, p.options) for p in protocols]]
            digest = hashlib.sha256(repr(parts).encode())
            digest.update(b"" if baseline_depth is None else baseline_depth.tobytes())
            digest.update(str(_length(samples)).encode())
            journal = Journal(directory, digest.hexdigest()[:16], shard or (0, 1))
            finished = journal.read()
        pending = tqdm(
            _pending(samples, finished, shard or (0, 1)),
            "evaluate",
            _length(samples) if shard is None else None,
            initial=len(finished) if shard is None else 0,
            unit=" images",
            disable=not progress,
            dynamic_ncols=True,
        )
        with journal or contextlib.nullcontext():
            for index, sample in pending:
                row = _row(index, sample, predict_fn, protocols, baseline_depth)
                finished[index] = row
                if journal and not row.error:  # A file may be repaired meanwhile.
                    journal.append(row)
        if shard is not None:
            return None

        rows = [finished[index] for index in sorted(finished)]
        found = {p.name: results.of(rows, p, options, others[p.name]) for p in protocols}
        for protocol in protocols:
            place = results.directory(directory, protocols, protocol)
            place.mkdir(exist_ok=True)
            results.write(place, rows, protocol, found[protocol.name])
        if journal:
            journal.remove()
    return found


def parse_shard(text: str) -> Shard:
    """(index, count) of a text like `0/4`.

    Raises:
      ValueError: for any other text.
    """
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"shard is {text!r}; it must be I/N with I from 0 to N-1, such as 0/4")
    return int(index), int(count)


def predict(
    predict_fn: PredictFn | None, protocol: Protocol, sample: Mapping[str, Any]
) -> np.ndarray:
    """The prediction that a protocol scores: the sample's own, or of what the model is fed."""
    if "prediction" in sample:
        return sample["prediction"]
    with _naming(sample["id"]):
        image = protocol.prepare(sample["image"])
    return predict_fn(image)


def _length(samples: Iterable[Any]) -> int | None:
    return len(samples) if hasattr(samples, "__len__") else None


def _pending(
    samples: Iterable[Mapping[str, Any]], finished: Collection[int], shard: Shard
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The samples still to do; what is done is not even read where samples can be chosen."""
    part, count = shard
    if hasattr(samples, "__len__") and hasattr(samples, "__getitem__"):
        for index in range(part, len(samples), count):
            if index not in finished:
                yield index, samples[index]
    else:
        for index, sample in enumerate(samples):
            if index % count == part and index not in finished:
                yield index, sample


def _row(
    index: int,
    sample: Mapping[str, Any],
    predict_fn: PredictFn | None,
    protocols: Sequence[Protocol],
    baseline_depth: np.ndarray | None,
) -> Row:
    """Predicts and scores one image."""
    name = sample["id"]
    if "error" in sample:
        return Row(index, name, error=sample["error"])
    predictions: dict[Any, np.ndarray] = {}
    scores, baseline = {}, {}
    for protocol in protocols:
        if protocol.fed not in predictions:
            predictions[protocol.fed] = predict(predict_fn, protocol, sample)
        with _naming(name):
            scores[protocol.name] = protocol.score_sample(predictions[protocol.fed], sample)
            if baseline_depth is not None:
                depth, _ = protocol.truth(sample)
                guess = frames.resize_nearest(baseline_depth, depth.shape)
                baseline[protocol.name] = protocol.unaligned().score_sample(guess, sample)
    return Row(index, name, sample.get("condition", ""), scores, baseline)


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
