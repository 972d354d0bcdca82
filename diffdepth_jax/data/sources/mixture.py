"""Several sources mixed by weight, for example rendered pairs, physical pairs and clear frames.

    config.data.train.source = {
        "name": "mixture",
        "parts": {
            "rendered": {"source": {"name": "adverse", "root": "runs/rendered"}, "weight": 2.0},
            "physical": {"source": {"name": "adverse", "root": "runs/physical"}, "weight": 1.0},
            "clear": {"source": {"name": "kitti"}, "weight": 1.0, "clean": True},
        },
    }

An epoch has every frame of every part at least once. If a part's weight needs more frames than it
has, frames are repeated evenly; the seed decides which are used once more than the rest. All parts
must have the same kind of label: metric depth or relative disparity.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from diffdepth_jax.config import choice
from diffdepth_jax.data.listing import Frame
from diffdepth_jax.data.sources import Sample, Source, build_source
from diffdepth_jax.typing import OnError

DEPTH_RANGE = (1e-3, 80.0)  # metres; parts may have different ranges


@dataclasses.dataclass(frozen=True)
class Part:
    """One source of several.

    Attributes:
        source: `name` and the fields of that source's `Config`.
        weight: this part's share of the samples, relative to the other weights. If None for all
            parts, shares are proportional to the parts' sizes.
        clean: whether its images are clean: each then also serves as its own `clean_image`.
    """

    source: Any = choice("source")
    weight: float | None = None
    clean: bool = False

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise ValueError(
                f"weight is {self.weight}; it must be positive: to disable a part, leave it out"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """Which sources to mix, and with which weights.

    Attributes:
        parts: the parts by name; names are free and prefix the ids.
        seed: decides which frames of a part are repeated once more than the others.
        clean_images: let the parts read their clean images too, see `adverse`.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["mixture"] = "mixture"
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)
    seed: int = 0
    clean_images: bool = True
    check_files: bool = True

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts is empty: name at least one source")
        for name in self.parts:
            if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
                raise ValueError(
                    f"parts has {name!r}, but names prefix ids and file names: use only letters, "
                    "digits, -, _ and ."
                )
        weighted = [name for name, part in self.parts.items() if part.weight is not None]
        if weighted and len(weighted) < len(self.parts):
            absent = next(name for name in self.parts if name not in weighted)
            raise ValueError(
                f"parts[{absent!r}] has no weight, but others do: give all parts a weight, or none"
            )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")


def build(config: Config) -> "Mixture":
    """Opens all parts; raises the errors that they raise."""
    on_error: OnError = "raise" if config.check_files else "skip"
    # Sorted, so that the order in the config does not matter.
    sources = {
        name: build_source(config.parts[name].source, on_error, config.clean_images)
        for name in sorted(config.parts)
    }
    return Mixture(config, sources)


class Mixture:
    """The samples of all parts, part by part in the order of their names.

    Attributes:
        counts: number of samples from each part in an epoch.
        examples: the index of the first sample of each part.
    """

    def __init__(self, config: Config, sources: dict[str, Source]):
        self._names = tuple(sources)
        self._sources = tuple(sources.values())
        parts = [config.parts[name] for name in self._names]
        self._clean = tuple(part.clean for part in parts)
        sizes = np.array([len(source) for source in self._sources])
        weights = np.array([part.weight or 0.0 for part in parts])
        if not weights.any():
            weights = sizes.astype(np.float64)
        # Just enough to use every frame of every part at least once.
        counts = np.rint(weights * (sizes / weights).max()).astype(int)
        self.counts = dict(zip(self._names, counts.tolist(), strict=True))
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.examples = tuple(self._starts[:-1].tolist())
        self._more = [
            np.random.default_rng([config.seed, place]).permutation(size)[: count % size]
            for place, (size, count) in enumerate(zip(sizes, counts, strict=True))
        ]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        part, place, copy = self._place(index)
        sample = self._sources[part][place]
        if self._clean[part]:
            sample = {**sample, "clean_image": sample["image"]}
        return {**sample, "id": self._id(part, sample["id"], copy)}

    @property
    def frames(self) -> Sequence[Frame]:
        """The files of all samples; empty if any part does not list its files."""
        listed = all(getattr(source, "frames", ()) for source in self._sources)
        return _Frames(self) if listed else ()

    def frame(self, index: int) -> Frame:
        """The files of a sample."""
        part, place, copy = self._place(index)
        frame = self._sources[part].frames[place]  # type: ignore[attr-defined]  # see `frames`
        return dataclasses.replace(frame, id=self._id(part, frame.id, copy))

    def _place(self, index: int) -> tuple[int, int, int]:
        """A sample's part, its frame in the part, and how often that frame came before."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        within, size = index - int(self._starts[part]), len(self._sources[part])
        copy = within // size
        whole = copy < self._counts(part) // size
        place = within % size if whole else int(self._more[part][within % size])
        return part, place, copy

    def _counts(self, part: int) -> int:
        return int(self._starts[part + 1] - self._starts[part])

    def _id(self, part: int, name: str, copy: int) -> str:
        return f"{self._names[part]}_{name}" + (f"+{copy}" if copy else "")


class _Frames(Sequence[Frame]):
    """The frames of a mixture, created on demand."""

    def __init__(self, mixture: Mixture):
        self._mixture = mixture

    def __len__(self) -> int:
        return len(self._mixture)

    def __getitem__(self, index: int) -> Frame:  # type: ignore[override]  # no slices
        return self._mixture.frame(index)
