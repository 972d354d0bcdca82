"""Adverse conditions from published models of image formation, given a clean image and its depth.

Needs no weights and no GPU; `adverse/image_formation.py` has the models. Manifests and tables call
the images "physical-night" and so on, as they do not come from a generative network.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from diffdepth_jax import atomic
from diffdepth_jax.adverse import image_formation
from diffdepth_jax.adverse.backends import Item, Outcome
from diffdepth_jax.data import io
from diffdepth_jax.data.listing import known
from diffdepth_jax.errors import ConfigError, UserError

CONDITIONS = tuple(image_formation.CONDITIONS)
USES_PROMPTS = False
_VERSION = 1  # version of the models; increase it when the same items give other images


@dataclasses.dataclass(frozen=True)
class Config:
    """How images are generated.

    Attributes:
        batch_size: images that a thread generates one after another; does not affect pixels.
        threads: None for one per core.
    """

    name: Literal["physical"] = "physical"
    batch_size: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"batch_size is {self.batch_size} and threads {self.threads}; they must be positive"
            )


def title(config: Config, condition: str) -> str:
    """The name of a condition's images in manifests and tables."""
    del config
    return f"physical-{condition}"


@contextlib.contextmanager
def open(config: Config, *, python: str | None, workdir: Path) -> Iterator["Session"]:
    """Opens the backend; it needs no checks and no separate process.

    Raises:
        ConfigError: if an interpreter is given.
    """
    del workdir
    if python is not None:
        raise ConfigError(
            f"--python={python}: the physical backend runs in this process, so leave it out"
        )
    yield Session(config)


class Session:
    """See `backends.Session`."""

    def __init__(self, config: Config):
        self._config = config

    def identity(self) -> Mapping[str, Any]:
        return {"models": _VERSION}

    def check(self, items: Sequence[Item]) -> None:
        """Raises ConfigError for an item that no model supports."""
        for item in items:
            if item.condition not in CONDITIONS or item.image is None or item.depth is None:
                raise ConfigError(
                    f"{item.key}: the physical backend only generates {', '.join(CONDITIONS)}, "
                    "from a clean image and its depth; leave the condition out or use another "
                    "backend"
                )

    def generate(self, batches: Sequence[Sequence[Item]]) -> Iterator[Outcome]:
        """See `backends.Session.generate`; outcomes are in the order of the items."""
        threads = self._config.threads or os.cpu_count() or 1
        with ThreadPoolExecutor(threads) as pool:
            try:
                for outcomes in pool.map(lambda batch: [_make(item) for item in batch], batches):
                    yield from outcomes
            finally:
                pool.shutdown(cancel_futures=True)


def _make(item: Item) -> Outcome:
    try:
        image = io.read_image(known(item.image))
        depth = np.load(known(item.depth))
    except (UserError, OSError, ValueError) as error:
        return Outcome(item.key, error=f"{item.image} or {item.depth}: {error}")
    if depth.shape != image.shape[:2]:
        return Outcome(
            item.key, error=f"{item.depth} is {depth.shape}, but its image is {image.shape[:2]}"
        )
    if item.depth_is == "relative_disparity":
        depth = image_formation.relative_depth(depth)
    scene = image_formation.scene(image, depth, item.intrinsics)
    picture, strengths = image_formation.render(item.condition, scene, item.seed)
    atomic.write(item.output, lambda file: Image.fromarray(picture).save(file, "png"))
    return Outcome(item.key, details={"strengths": strengths})
