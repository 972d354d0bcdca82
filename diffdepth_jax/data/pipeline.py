"""Training batches and evaluation samples from a source.

The stream of training samples depends only on the seed: every epoch has the whole source in a
different order, and sample n is augmented with random numbers that depend on the seed and n. The
number of threads, workers or processes and interruptions do not change it.
"""

import dataclasses
import fractions
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import grain
import numpy as np
from absl import flags

from diffdepth_jax.config import choice
from diffdepth_jax.data.listing import Frame
from diffdepth_jax.data.sources import Sample, Source, build_source
from diffdepth_jax.data.transforms import Augmentation, augment
from diffdepth_jax.errors import ConfigError, DataError, FileError
from diffdepth_jax.typing import Batch, InputSpec, OnError

_LOG = logging.getLogger(__name__)

# Fields of a sample; all others are not augmented.
_IN_BATCHES = ("image", "depth", "intrinsics", "id", "skipped", "relative_disparity")
_UNREADABLE = (DataError, FileError)  # raised by sources for damaged and missing files


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where training samples come from and how they are prepared.

    Attributes:
        source: `name` (kitti, nyu) and the fields of that source's `Config`.
        augmentation: see `transforms.Augmentation`; its `crop` is the image size in batches.
        depth_range: (low, high) in metres; `valid_mask` is depth > 0 and, if this is given,
            strictly between the two. For metric labels only.
        clean_share: for a source with clean images, the fraction of samples that use the clean
            image instead of the generated one, spread evenly: exactly batch_size * clean_share in
            every batch if that is a whole number.
        cache: keep decoded frames in memory (in each process) after first use; for small data sets.
        num_workers: processes that prepare batches; 0 to use threads in this process.
        num_threads: threads in each process; Pillow releases Python's lock.
    """

    source: Any = choice("source")
    augmentation: Augmentation = Augmentation()
    depth_range: tuple[float, float] | None = None
    clean_share: float = 0.0
    cache: bool = False
    num_workers: int = 0
    num_threads: int = 2

    def __post_init__(self) -> None:
        if self.depth_range is not None and not 0 <= self.depth_range[0] < self.depth_range[1]:
            raise ValueError(f"depth_range is {self.depth_range}; it must be (low, high) in metres")
        if not 0 <= self.clean_share <= 1:
            raise ValueError(f"clean_share is {self.clean_share}; it must be 0 to 1")
        if self.num_workers < 0 or self.num_threads < 1:
            raise ValueError(
                f"num_workers is {self.num_workers} and num_threads {self.num_threads}; they must "
                "be at least 0 and 1"
            )


def evaluation_samples(
    config: Any, limit: int | None = None, on_error: OnError = "raise"
) -> Sequence[Mapping[str, Any]]:
    """Samples of a source in order, as stored: native size, no augmentation.

    Args:
        config: a source config (`kitti.Config`, `nyu.Config`).
        limit: at most this many, spread evenly over the source; None for all.
        on_error: `skip` returns `{"id": ..., "error": why}` instead of a frame that cannot be read,
            and logs it once.

    Returns:
        A sequence that reads samples on demand.
    """
    source = build_source(config, on_error)
    count = len(source) if limit is None else min(limit, len(source))
    indices = [index * len(source) // count for index in range(count)]
    return _Selection(source, indices, on_error)


def readable(samples: Iterable[Mapping[str, Any]]) -> Iterator[Sample]:
    """Those from `evaluation_samples` that could be read."""
    return (cast(Sample, sample) for sample in samples if "error" not in sample)


def train_iterator(
    config: DataConfig,
    batch_size: int,
    seed: int,
    input_spec: InputSpec,
    shard: tuple[int, int] = (0, 1),
    on_error: OnError = "raise",
    clean_images: bool = False,
) -> "TrainIterator":
    """An endless stream of training batches (see `typing.Batch`) as NumPy arrays.

    Batches span epochs, so no frame is dropped and small sources work too.

    Args:
        config: the source, and how samples are prepared.
        batch_size: images per batch, across all processes.
        seed: 0 to 2**32 - 1.
        input_spec: the network's; images are normalised by its mean and std.
        shard: (index, count) of this process; each gets a block of `batch_size / count` images from
            every batch. Batches do not depend on the count.
        on_error: `skip` replaces a frame that cannot be read by the source's next readable one; the
            stream then still depends only on the seed (and on which frames are damaged). See
            `TrainIterator.skipped`.
        clean_images: whether batches include `clean_image` and `inside`, for a teacher that runs
            during training.

    Raises:
        ConfigError: if the batch cannot be divided evenly among processes; if clean images are
            requested, here or by `clean_share`, but the source has none; if `depth_range` is set
            for relative labels.
        FileError, DataError: as raised by the source, also while iterating. With `skip`, DataError
            if more than a tenth of the source (and more than ten frames) cannot be read.
    """
    index, count = shard
    if not 0 <= index < count or batch_size < 1 or batch_size % count:
        raise ConfigError(
            f"batch_size {batch_size} cannot be divided among {count} processes (this is process "
            f"{index}): it must be a positive multiple of {count}"
        )
    source: Source = build_source(config.source, on_error, clean_images or config.clean_share > 0)
    examples = getattr(source, "examples", (0,))  # a mixture has several kinds of samples
    if config.cache:
        source = _Cached(source)
    if on_error == "skip":
        source = _Replacing(source)
    prepare = _Prepare(config, input_spec, clean_images)
    # Read one frame now, so that errors common to all are reported before compilation.
    first = [source[index] for index in examples]
    _check_labels(config, clean_images, first)
    for sample in first:
        prepare(sample, np.random.default_rng(seed))
    samples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    if config.clean_share:
        samples = samples.map_with_index(_CleanShare(config.clean_share))
    samples = samples.random_map(prepare)
    # Every batch consists of `count` blocks, one for each process's devices.
    batches = samples.batch(batch_size // count, drop_remainder=True)[index::count]
    return TrainIterator(batches, batch_size, len(source), config.num_workers, config.num_threads)


class TrainIterator(Iterator[Batch]):
    """A process's batches, with a position that can be saved and restored.

    Attributes:
        skipped: reasons, by id, why frames could not be read, in the batches that this process has
            returned and in those of other processes. Each is logged once. Part of the saved state.
    """

    def __init__(
        self,
        batches: grain.MapDataset,
        batch_size: int,
        num_frames: int,
        num_workers: int,
        num_threads: int,
    ):
        self.skipped: dict[str, str] = {}
        self._batches = batches
        self._batch_size = batch_size
        self._num_frames = num_frames
        self._num_workers = num_workers
        self._num_threads = num_threads
        self._position = 0
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        batch = dict(next(self._iterator))
        self._position += 1
        for text in batch.pop("skipped", ()):
            self._note(json.loads(str(text)))
        return batch

    def get_state(self) -> bytes:
        """The position in the stream: the number of samples used by all processes together."""
        state = {"samples": self._position * self._batch_size, "skipped": self.skipped}
        return json.dumps(state).encode()

    def set_state(self, state: bytes) -> None:
        """Continues where `get_state` was called, in this or another run with the same config.

        With a different batch size, it continues at the last whole batch before that sample.
        """
        try:
            values = json.loads(state)
            samples, skipped = int(values["samples"]), dict(values.get("skipped", {}))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{state!r} is not a state of this iterator") from error
        self.close()
        self.skipped = skipped
        self._position = samples // self._batch_size

    def close(self) -> None:
        """Stops threads and workers; the iterator may be used again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _note(self, broken: Mapping[str, str]) -> None:
        for name, reason in broken.items():
            if name not in self.skipped:
                _LOG.warning("frame %s is skipped: %s", name, reason)
                self.skipped[name] = reason
        _require_few(self.skipped, self._num_frames)

    def _start(self) -> grain.DatasetIterator:
        # Batches are formed before being divided among workers, so their number changes neither the
        # batches nor their order.
        options = grain.ReadOptions(
            num_threads=self._num_threads, prefetch_buffer_size=2 * self._num_threads
        )
        dataset = self._batches[self._position :].to_iter_dataset(options)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # grain reads its flags, but there is no absl app here
                flags.FLAGS.mark_as_parsed()
            workers = grain.MultiprocessingOptions(self._num_workers)
            dataset = dataset.mp_prefetch(workers)
        return iter(dataset)


def _check_labels(config: DataConfig, clean_images: bool, samples: Sequence[Sample]) -> None:
    """Rejects a config that needs fields which these example samples do not have."""
    for sample in samples:
        if (clean_images or config.clean_share) and "clean_image" not in sample:
            why = "" if clean_images else f" (clean_share is {config.clean_share})"
            raise ConfigError(
                f"{sample['id']} of the source {config.source.name!r} has no clean image, but one "
                f"is needed{why}: use a source with pairs, such as 'adverse'; in a mixture, set "
                "clean=True for a part whose images are all clean"
            )
    relative = [sample for sample in samples if "relative_disparity" in sample]
    if 0 < len(relative) < len(samples):
        metric = next(sample for sample in samples if "relative_disparity" not in sample)
        raise ConfigError(
            f"the label of {relative[0]['id']} is relative disparity, but that of {metric['id']} "
            "is metric depth, and no loss works with both: leave one out, or use clean_share "
            "instead of clean frames"
        )
    if config.depth_range and relative:
        raise ConfigError(
            f"depth_range is {config.depth_range} metres, but the labels of the source "
            f"{config.source.name!r} are relative disparity: leave it out"
        )


@dataclasses.dataclass(frozen=True)
class _CleanShare:
    """Replaces generated images by clean ones, for grain's `map_with_index`."""

    share: float

    def __call__(self, index: int, sample: Sample) -> Sample:
        share = fractions.Fraction(self.share).limit_denominator(10_000)
        # floor(n * share) of the first n images, so evenly spread and exact in whole batches.
        if math.floor((index + 1) * share) == math.floor(index * share):
            return sample
        return {**sample, "image": sample["clean_image"]}


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """Augments and normalises a sample, for grain's `random_map`."""

    config: DataConfig
    input_spec: InputSpec
    clean_images: bool

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        names = (*_IN_BATCHES, "clean_image") if self.clean_images else _IN_BATCHES
        fields: Mapping[str, Any] = sample
        sample = cast(Sample, {name: fields[name] for name in names if name in fields})
        sample = augment(sample, self.config.augmentation, rng, inside=self.clean_images)
        depth = sample["depth"][:, :, None]
        low, high = self.config.depth_range or (0.0, np.inf)
        batch: dict[str, Any] = {"skipped": fields["skipped"]} if "skipped" in fields else {}
        batch |= {
            "image": self.input_spec.normalise(sample["image"]),
            "depth": depth,
            "valid_mask": (depth > low) & (depth < high),
            "intrinsics": sample["intrinsics"],
            "id": sample["id"],
        }
        if "relative_disparity" in sample:
            label = sample["relative_disparity"][:, :, None]
            batch["valid_mask"] = np.isfinite(label)
            batch["relative_disparity"] = np.where(batch["valid_mask"], label, np.float32(0))
        if self.clean_images:
            batch["clean_image"] = self.input_spec.normalise(sample["clean_image"])
            batch["inside"] = sample["inside"][:, :, None]
        return batch


class _Selection(Sequence[Mapping[str, Any]]):
    """A subset of a source's samples."""

    def __init__(self, source: Source, indices: Sequence[int], on_error: OnError):
        self._source = source
        self._indices = indices
        self._on_error = on_error
        self._broken: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Mapping[str, Any]:  # type: ignore[override]  # no slices
        place = self._indices[index]
        if self._on_error == "raise":
            return self._source[place]
        if place not in self._broken:
            try:
                return self._source[place]
            except _UNREADABLE as error:
                self._broken[place] = str(error)
                _LOG.warning("frame %s is skipped: %s", _name(self._source, place), error)
        return {"id": _name(self._source, place), "error": self._broken[place]}

    def frame(self, index: int) -> Frame | None:
        """The files of a sample, without reading them; None if the source does not list them."""
        frames = getattr(self._source, "frames", None)
        return frames[self._indices[index]] if frames else None

    def selected(self) -> tuple[int, list[str]]:
        """Which frames these are: the source's length, and the ids of the samples or, if the source
        does not list its frames, their numbers in it. Reads no sample."""
        return len(self._source), [_name(self._source, place) for place in self._indices]


class _Replacing:
    """A source that replaces each unreadable frame by the next readable one.

    The replacement depends only on the index, not on what any process read before. The sample's
    `skipped` holds the skipped frames: reasons by id, as JSON.
    """

    def __init__(self, source: Source):
        self._source = source
        self._broken: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        skipped: dict[str, str] = {}
        while True:  # until a frame can be read or `_require_few` raises
            if index not in self._broken:
                try:
                    skip = {"skipped": json.dumps(skipped)}
                    return cast(Sample, {**self._source[index], **skip})
                except _UNREADABLE as error:
                    self._broken[index] = str(error)
            skipped[_name(self._source, index)] = self._broken[index]
            _require_few(self._broken, len(self))
            index = (index + 1) % len(self)


def _require_few(broken: Mapping[Any, str], num_frames: int) -> None:
    """Raises DataError if too many frames are unreadable for isolated damage."""
    if len(broken) == num_frames or len(broken) > max(10, num_frames // 10):
        last = list(broken.values())[-1]
        raise DataError(
            f"{len(broken)} of {num_frames} frames cannot be read, which is too many to skip; the "
            f"last error: {last}"
        )


def _name(source: Source, index: int) -> str:
    """The id of an unreadable frame, or its number if it has no id."""
    frames = getattr(source, "frames", None)
    return frames[index].id if frames else f"{index:06d}"


class _Cached:
    """A source that caches frames after reading them once."""

    def __init__(self, source: Source):
        self._source = source
        self.frames = getattr(source, "frames", ())
        self._samples: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        if index not in self._samples:
            self._samples[index] = self._source[index]
        return self._samples[index]
