"""Runs over a data set: predicts and scores every image once, and keeps its row.

Only one group of images is in memory at a time; only the rows of finished images are kept. Results
are written at the end; `report.results` describes them. With a fingerprint of the model, rows are
also kept on disk until then, so an interrupted evaluation continues where it stopped, and several
processes can share one (`shard`).
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from diffdepth_jax import atomic, locking
from diffdepth_jax.errors import ConfigError, naming_file
from diffdepth_jax.evaluation.protocols import MEASURES, Protocol, Score, frames
from diffdepth_jax.evaluation.protocols.protocol import PredictFn, Prediction, naming_image
from diffdepth_jax.evaluation.report import comparisons, results
from diffdepth_jax.evaluation.report.rows import Row
from diffdepth_jax.evaluation.run.journal import Journal
from diffdepth_jax.processes import Processes

Shard = tuple[int, int]
Item = TypeVar("Item")


def score_dataset(
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
    processes: Processes | None = None,
    batch_size: int = 1,
    progress: bool = True,
) -> dict[str, dict[str, Any]] | None:
    """Predicts every image once, scores it under all protocols, and writes the results.

    Args:
        predict_fn: maps a list of uint8 images [h, w, 3] to depth maps [h, w] of the same sizes in
            metres (or in what the protocol's alignment converts to metres), or to tuples of the
            mean and spread of several samples. It is called with images from `protocol.prepare`,
            once for all protocols with the same input. None if the samples contain their
            `prediction`.
        samples: have `image`, `depth` float [h, w] in metres (0 = unmeasured), `id` and optionally
            `condition`; protocols document what else they need. An unreadable image may be passed
            as `{"id": ..., "error": why}`: it is counted and listed.
        protocols: how to score; names must differ.
        workdir: directory for the two files or, with several protocols, a folder with these files
            for each. Created if missing, and removed again if nothing was written.
        baseline_depth: the training set's median map (`baseline.median_depth_map`) for full frames;
            resized to each frame by nearest neighbour and scored the same way, without alignment.
        options: prediction settings, such as `flip_tta`, to state with the result; `dataset`, a
            source's name, determines which published results apply.
        compare: other results to compare with; maps names to a `metrics.json` or its directory.
        fingerprint: hash of everything else that determines predictions and samples (weights, data
            config). If given, finished images are kept in `workdir` until all are done.
        shard: (index, count): only process every count-th image, starting with image index, keep
            the rows and write no result. The same call without a shard then collects all rows,
            processes what is missing and writes the result.
        processes: processes that call this together, without a shard or fingerprint: each scores a
            part of the images, all return the whole result, and the first writes it. By default
            only this one.
        batch_size: number of images passed to `predict_fn`, and held in memory, at once.
        progress: whether to show a progress bar.

    Returns:
        The content of each `metrics.json` by the protocol's name; None for a shard.

    Raises:
        DataError: if an image cannot be scored (names it), if nothing was scored, or if results to
            compare with are not comparable.
        FileError: before anything is predicted, if `workdir` cannot be written or a comparison
            cannot be read.
    """
    if shard is not None and (fingerprint is None or not 0 <= shard[0] < shard[1]):
        raise ValueError(
            f"shard is {shard}; it must be (index, count) with 0 <= index < count, and needs a "
            "fingerprint to find the rows of other shards"
        )
    processes = processes or Processes()
    if processes.count > 1 and fingerprint is not None:
        raise ValueError("with a fingerprint, rows are kept on disk: use a shard, not processes")
    part = shard or (processes.index, processes.count)
    options = dict(options or {})
    others = {each.name: comparisons.read(compare or {}, each, options) for each in protocols}
    # A training run's own evaluations keep no rows and need no lock.
    exclusive = predict_fn is None or fingerprint is not None
    directory = Path(workdir).expanduser()
    with (
        atomic.directory(directory),
        locking.hold(directory, _lock(shard)) if exclusive else contextlib.nullcontext(),
    ):
        for place in {directory, *(results.directory(directory, protocols, p) for p in protocols)}:
            atomic.remove_leftovers(place)
        if fingerprint is None:
            finished, journal = {}, None
        else:
            parts = [fingerprint, options, [(p.name, p.options, *p.measuring) for p in protocols]]
            digest = hashlib.sha256(repr(parts).encode())
            digest.update(b"" if baseline_depth is None else baseline_depth.tobytes())
            digest.update(str(_length(samples)).encode())
            journal = Journal(directory, digest.hexdigest()[:16], part)
            finished = {
                index: row
                for index, row in journal.read().items()
                if _belongs(row, protocols, _length(samples))
            }
        with processes.agreed(), journal or contextlib.nullcontext(), _keeping(journal, finished):
            pending = tqdm(
                _pending(samples, finished, part),
                "evaluate",
                _length(samples) if part == (0, 1) else None,
                initial=len(finished) if part == (0, 1) else 0,
                unit=" images",
                disable=not (progress and processes.is_first),
                dynamic_ncols=True,
            )
            for group in _groups(pending, batch_size):
                for row in _rows(group, predict_fn, protocols, baseline_depth):
                    finished[row.index] = row
                    if (
                        journal and not row.error
                    ):  # the file may have been repaired by the next call
                        journal.append(row)
        if shard is not None:
            return None

        if processes.count > 1:
            finished = _gathered(finished, processes)
        rows = [finished[index] for index in sorted(finished)]
        found = {p.name: results.of(rows, p, options, others[p.name]) for p in protocols}
        with processes.agreed():
            for protocol in protocols if processes.is_first else ():
                place = results.directory(directory, protocols, protocol)
                with naming_file(place, "created"):
                    place.mkdir(exist_ok=True)
                results.write(place, rows, protocol, found[protocol.name])
        if journal:
            journal.remove()
    return found


def parse_shard(text: str) -> Shard:
    """Parses a text such as `0/4` to (index, count).

    Raises:
        ConfigError: for any other text.
    """
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ConfigError(
            f"shard is {text!r}; it must be I/N with I from 0 to N-1, for example 0/4"
        )
    return int(index), int(count)


def _gathered(finished: Mapping[int, Row], processes: Processes) -> dict[int, Row]:
    """The rows of all processes; numbers are preserved exactly."""
    texts = itertools.chain(*processes.gather([row.to_json() for row in finished.values()]))
    rows = (Row.from_json(text) for text in texts)
    return {row.index: row for row in rows}


def _lock(shard: Shard | None) -> str:
    return "evaluation" if shard is None else f"evaluation-{shard[0]}of{shard[1]}"


def _belongs(row: Row, protocols: Sequence[Protocol], length: int | None) -> bool:
    """Whether a row from disk belongs to this evaluation; if not, the image is scored again."""
    if row.error or row.index < 0 or (length is not None and row.index >= length):
        return False
    parts = [row.scores, *([row.baseline] if row.baseline else [])]
    return all(
        protocol.name in part and _has_metrics(part[protocol.name], protocol)
        for part in parts
        for protocol in protocols
    )


def _has_metrics(score: Score, protocol: Protocol) -> bool:
    if not score.num_valid:
        return not score.metrics
    wanted = set(protocol.metrics)
    return wanted <= set(score.metrics) <= wanted.union(MEASURES)


@contextlib.contextmanager
def _keeping(journal: Journal | None, finished: Collection[int]) -> Iterator[None]:
    """After Ctrl-C, says how to resume, if finished rows are kept."""
    try:
        yield
    except KeyboardInterrupt:
        if journal is None or not finished:
            raise
        raise KeyboardInterrupt(
            f"interrupted; {len(finished)} images are done and kept in {journal.path}: run the "
            "same command to resume"
        ) from None


def _length(samples: Iterable[Any]) -> int | None:
    return len(samples) if isinstance(samples, Sized) else None


def _pending(
    samples: Iterable[Mapping[str, Any]], finished: Collection[int], shard: Shard
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The remaining samples; finished ones are not read if `samples` is a sequence."""
    part, count = shard
    if isinstance(samples, Sized) and hasattr(samples, "__getitem__"):
        for index in range(part, len(samples), count):
            if index not in finished:
                yield index, samples[index]
    else:
        for index, sample in enumerate(samples):
            if index % count == part and index not in finished:
                yield index, sample


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group


def _rows(
    group: Sequence[tuple[int, Mapping[str, Any]]],
    predict_fn: PredictFn | None,
    protocols: Sequence[Protocol],
    baseline_depth: np.ndarray | None,
) -> Iterator[Row]:
    """Predicts the images of a group together and scores each."""
    readable = [sample for _, sample in group if "error" not in sample]
    predictions: dict[Any, Iterator[Prediction]] = {}
    for protocol in protocols if readable else ():
        if protocol.input_key not in predictions:
            found = protocol.predict(predict_fn, readable)
            predictions[protocol.input_key] = iter(found)
    for index, sample in group:
        if "error" in sample:
            yield Row(index, sample["id"], error=sample["error"])
            continue
        predicted = {key: next(found) for key, found in predictions.items()}
        scores, baseline = {}, {}
        for protocol in protocols:
            with naming_image(sample["id"]):
                scores[protocol.name] = protocol.score_sample(predicted[protocol.input_key], sample)
                if baseline_depth is not None:
                    depth, _ = protocol.truth(sample)
                    guess = frames.resize_nearest(baseline_depth, depth.shape)
                    unaligned = protocol.unaligned()
                    baseline[protocol.name] = unaligned.score_sample(guess, sample)
        yield Row(index, sample["id"], sample.get("condition", ""), scores, baseline)
