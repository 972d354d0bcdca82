"""Depth of the clean images: the labels, and the maps that condition the generator."""

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from diffdepth_jax import atomic
from diffdepth_jax.adverse import manifest
from diffdepth_jax.adverse.config import AdverseConfig, NetworkConfig
from diffdepth_jax.adverse.manifest import Frame
from diffdepth_jax.data.listing import known
from diffdepth_jax.errors import DataError, naming_file
from diffdepth_jax.typing import Output

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 2  # threads that read while the network computes
_DENSE = 0.25  # minimum fraction of known pixels in a depth map that conditions a generator


class Network:
    """A depth network, loaded on first use.

    Args:
        config: the network's config, with a checkpoint.
    """

    def __init__(self, config: NetworkConfig):
        self.config = config

    @functools.cached_property
    def _model(self) -> Any:
        from diffdepth_jax import (
            inference,
        )  # importing JAX takes seconds, and a finished run does not need it

        return inference.load(known(self.config.checkpoint), **self.config.options)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the weights and all options that affect its depth."""
        options = [self.config.num_inference_steps, self.config.flip_tta]
        weights = self._model.fingerprint(self.config.num_inference_steps)
        return hashlib.sha256(json.dumps([weights, options]).encode()).hexdigest()[:32]

    @property
    def output(self) -> Output:
        return self._model.output

    def predict(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Depth of each image, float32, at the image's size."""
        depths = self._model.predict(
            list(images),
            num_inference_steps=self.config.num_inference_steps,
            flip_tta=self.config.flip_tta,
            batch_size=self.config.batch_size,
        )
        return [np.asarray(depth, np.float32) for depth in depths]


def network(config: NetworkConfig) -> Network | None:
    """The network for a config; None if it has no checkpoint."""
    return None if config.checkpoint is None else Network(config)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A frame's content, before it is written to files."""

    frame: Frame
    image: np.ndarray
    label: np.ndarray
    control: np.ndarray
    depth: np.ndarray | None  # None if it is the label


class Labeller:
    """Predicts depth for frames and writes their files.

    Args:
        config: the run's config.
        teacher, steering: networks; None if not configured.
        workdir: the run's workdir.
    """

    def __init__(
        self,
        config: AdverseConfig,
        teacher: Network | None,
        steering: Network | None,
        workdir: Path,
    ):
        self._labels = config.labels
        self._teacher = teacher
        self._steering = steering
        self._workdir = workdir
        self._cache = None if config.cache is None else Path(config.cache).expanduser()
        networks = [each for each in (teacher, steering) if each is not None]
        self._batch_size = max([each.config.batch_size for each in networks], default=1)

    def prepare(
        self, indices: Sequence[int], read: Callable[[int], Mapping[str, Any]]
    ) -> Iterator[Frame]:
        """Writes the files of frames, yielding each frame once its files exist.

        Args:
            indices: which frames.
            read: returns a frame's sample, or `{"id": ..., "error": why}`.

        Raises:
            FileError: if a file cannot be written.
        """
        for folder in (manifest.CLEAN, manifest.LABELS, manifest.CONTROL):
            _make(self._workdir / folder)
        for part in _chunks(_ahead(read, indices, self._batch_size + _THREADS), self._batch_size):
            samples = {}
            for index, sample in part:
                if "error" in sample:
                    yield Frame(index, sample["id"], error=sample["error"])
                else:
                    samples[index] = sample
            yield from self._prepare(samples)

    def _prepare(self, samples: Mapping[int, Mapping[str, Any]]) -> Iterator[Frame]:
        images = [sample["image"] for sample in samples.values()]
        taught = self._predict(self._teacher, images)
        steered = taught if self._steering is None else self._predict(self._steering, images)
        for place, (index, sample) in enumerate(samples.items()):
            try:
                prepared = self._put_together(
                    index,
                    sample,
                    None if taught is None else taught[place],
                    None if steered is None else steered[place],
                )
            except DataError as error:
                yield Frame(index, sample["id"], error=str(error))
            else:
                self._write(prepared)
                yield prepared.frame

    def _put_together(
        self,
        index: int,
        sample: Mapping[str, Any],
        taught: np.ndarray | None,
        steered: np.ndarray | None,
    ) -> Prepared:
        source_depth = np.asarray(sample["depth"], np.float32)
        label_is: Output = "metric_depth"
        if self._labels == "teacher":
            label, label_is = known(taught), known(self._teacher).output
        else:
            label = source_depth
        for each in (taught, steered):
            if each is not None and not np.isfinite(each).all():
                raise DataError(
                    f"{sample['id']}: the network's depth is not finite: check the image"
                )
        depth, depth_is = label, label_is
        if label_is == "metric_depth" and (label > 0).mean() < _DENSE:
            if taught is None:
                raise DataError(
                    f"{sample['id']}: the source's depth covers {(label > 0).mean():.1%} of the "
                    "image, but generation needs dense depth: also set teacher.checkpoint with "
                    "labels='source', or use a source with dense depth"
                )
            depth, depth_is = taught, known(self._teacher).output
        if self._steering is not None:
            control = steering_map(known(steered), self._steering.output)
        else:
            control = steering_map(depth, depth_is)
        intrinsics = np.asarray(sample["intrinsics"], np.float64)
        frame = Frame(
            index=index,
            id=sample["id"],
            size=tuple(sample["image"].shape[:2]),
            intrinsics=(
                tuple(intrinsics.ravel().tolist()) if np.isfinite(intrinsics).all() else None
            ),
            weather=str(sample.get("condition", "")),
            label_is=label_is,
            depth_is=depth_is,
        )
        if depth is label:
            frame = dataclasses.replace(frame, depth=frame.label)
            return Prepared(frame, sample["image"], label, control, None)
        frame = dataclasses.replace(frame, depth=f"{manifest.DEPTH}/{frame.id}.npy")
        return Prepared(frame, sample["image"], label, control, depth)

    def _write(self, prepared: Prepared) -> None:
        frame, image = prepared.frame, Image.fromarray(prepared.image)
        # Low compression: more would take longer than everything else.
        save = functools.partial(image.save, format="png", compress_level=2)
        atomic.write(self._workdir / frame.clean, save)
        _save(self._workdir / frame.label, prepared.label)
        _save(self._workdir / frame.control, prepared.control)
        if prepared.depth is not None:
            _make(self._workdir / manifest.DEPTH)
            _save(self._workdir / frame.depth, prepared.depth)

    def _predict(
        self, network: Network | None, images: Sequence[np.ndarray]
    ) -> list[np.ndarray] | None:
        """Depth of the images, from the cache if possible."""
        if network is None:
            return None
        if self._cache is None:
            return network.predict(images)
        folder = self._cache / network.fingerprint
        _make(folder)
        paths = [folder / f"{_image_hash(image)}.npy" for image in images]
        depths = [_cached(path, image.shape) for path, image in zip(paths, images, strict=True)]
        missing = [place for place, depth in enumerate(depths) if depth is None]
        found = network.predict([images[place] for place in missing]) if missing else []
        for place, depth in zip(missing, found, strict=True):
            depths[place] = depth
            _save(paths[place], depth)
        return [known(depth) for depth in depths]


def steering_map(depth: np.ndarray, depth_is: Output) -> np.ndarray:
    """The map that conditions a generator: float32 [h, w], larger is nearer.

    Args:
        depth: metres, with 0 where unknown, which counts as far away; or relative disparity, which
            is returned unchanged.
    """
    if depth_is == "relative_disparity":
        return np.asarray(depth, np.float32)
    known = depth > 0
    return np.where(known, 1 / np.where(known, depth, 1), 0).astype(np.float32)


def _image_hash(image: np.ndarray) -> str:
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()[:32]


def _cached(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """A depth map from the cache; None if there is no usable one."""
    try:
        depth = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return depth if depth.shape == shape[:2] and depth.dtype == np.float32 else None


def _save(path: Path, array: np.ndarray) -> None:
    atomic.write(path, lambda file: np.save(file, np.asarray(array, np.float32)))


def _make(folder: Path) -> None:
    with naming_file(folder, "created"):
        folder.mkdir(parents=True, exist_ok=True)


def _ahead(
    function: Callable[[T], R], arguments: Iterable[T], number: int
) -> Iterator[tuple[T, R]]:
    """Yields (argument, result) in order; threads compute results ahead of time."""
    pool = ThreadPoolExecutor(_THREADS)
    waiting: collections.deque[tuple[T, Future[R]]] = collections.deque()
    try:
        for argument in arguments:
            waiting.append((argument, pool.submit(function, argument)))
            if len(waiting) > number:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
