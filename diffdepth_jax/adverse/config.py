"""The config of `generate_adverse.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from diffdepth_jax import config as configs
from diffdepth_jax import registry
from diffdepth_jax.config import choice
from diffdepth_jax.typing import OnError


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """A depth network, as `inference.load` opens it.

    Attributes:
      checkpoint: a run directory or a file of weights; None for no network.
      options: what the file name does not say, as keyword arguments of `load`.
      num_inference_steps: denoising steps; None for the checkpoint's own number.
      flip_tta: average with the mirrored image's depth; None for what its publication does.
      batch_size: images of equal size that are predicted at once.
    """

    checkpoint: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    num_inference_steps: int | None = None
    flip_tta: bool | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Where prompts come from.

    Attributes:
      files: further TOML files like `prompts.toml`; their entries are added to its own, or replace
        those of the same name.
      scene: the scene words, a table of the bank such as `street`; None for the one that belongs to
        the source.
    """

    files: tuple[str, ...] = ()
    scene: str | None = None


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """Clean images that the backend makes from prompts alone, instead of a source's.

    Attributes:
      count: how many.
      size: (height, width).
    """

    count: int
    size: tuple[int, int] = (512, 512)

    def __post_init__(self) -> None:
        if self.count < 1 or min(self.size) < 1:
            raise ValueError(f"count is {self.count} and size {self.size}; they must be positive")


@dataclasses.dataclass(frozen=True)
class StructureConfig:
    """Which images are rejected because their depth no longer matches the label.

    Attributes:
      score: whether the teacher scores every image. It takes most of the time, and is not needed
        where images keep their depth by construction. If switched on later, existing images are
        scored then.
      max_abs_rel: reject above this error of the teacher's depth, aligned to the label.
      min_edge_agreement: reject below this agreement of depth edges.
      worst_share: of each condition, reject this share of the largest errors.
    """

    score: bool = True
    max_abs_rel: float | None = None
    min_edge_agreement: float | None = None
    worst_share: float = 0.0

    def __post_init__(self) -> None:
        limits = (self.max_abs_rel, self.min_edge_agreement, self.worst_share or None)
        if not self.score and any(limit is not None for limit in limits):
            raise ValueError(
                "score is False, but max_abs_rel, min_edge_agreement or worst_share needs the "
                "scores: set it to True or leave these out"
            )
        if not 0 <= self.worst_share < 1:
            raise ValueError(f"worst_share is {self.worst_share}; it must be from 0 to below 1")
        if self.max_abs_rel is not None and self.max_abs_rel <= 0:
            raise ValueError(f"max_abs_rel is {self.max_abs_rel}; it must be positive")
        if self.min_edge_agreement is not None and not 0 <= self.min_edge_agreement <= 1:
            raise ValueError(
                f"min_edge_agreement is {self.min_edge_agreement}; it must be from 0 to 1"
            )


@dataclasses.dataclass(frozen=True)
class GalleryConfig:
    """The gallery of generated images.

    Attributes:
      frames: number of frames shown, spread evenly.
      width: of a picture, in pixels.
    """

    frames: int = 100
    width: int = 320

    def __post_init__(self) -> None:
        if self.frames < 1 or self.width < 16:
            raise ValueError(
                f"frames is {self.frames} and width {self.width}; at least 1 and 16 are needed"
            )


@dataclasses.dataclass(frozen=True)
class AdverseConfig:
    """A run of `generate_adverse.py`.

    Attributes:
      source: the clean images: `name` and the fields of that source's `Config`; None with `scenes`.
      scenes: clean images from prompts, where there is no source.
      limit: at most this many frames of the source, spread evenly.
      on_error: what to do with a frame that cannot be read: `skip` records its images as failed.
      conditions: see the prompt bank, `prompts.toml`.
      variants: images per frame and condition.
      seed: decides prompts, noise and strengths, together with id, condition and variant.
      labels: `teacher`, its prediction for the clean image; or `source`, the source's own depth.
      teacher: the network that makes the labels and scores the images' structure.
      steering: the network whose depth steers the generator; the teacher if it has no checkpoint.
      prompts: see `PromptConfig`.
      structure: see `StructureConfig`.
      gallery: see `GalleryConfig`.
      cache: the folder of predicted depth, which several workdirs may share; None for one in the
        workdir.
      backend: `name` and the fields of that backend's `Config`.
    """

    conditions: tuple[str, ...]
    backend: Any = choice("backend")
    source: Any = choice("source", default=None)
    scenes: ScenesConfig | None = None
    limit: int | None = None
    on_error: OnError = "skip"
    variants: int = 1
    seed: int = 0
    labels: Literal["teacher", "source"] = "teacher"
    teacher: NetworkConfig = NetworkConfig()
    steering: NetworkConfig = NetworkConfig()
    prompts: PromptConfig = PromptConfig()
    structure: StructureConfig = StructureConfig()
    gallery: GalleryConfig = GalleryConfig()
    cache: str | None = None

    def __post_init__(self) -> None:
        if (self.source is None) == (self.scenes is None):
            raise ValueError(
                "exactly one of source and scenes must be given: where clean images come from"
            )
        if not self.conditions:
            raise ValueError("conditions is empty: name at least one, such as ('night',)")
        if repeated := {each for each in self.conditions if self.conditions.count(each) > 1}:
            raise ValueError(f"conditions names {', '.join(sorted(repeated))} twice")
        if self.variants < 1:
            raise ValueError(f"variants is {self.variants}; it must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; it must be at least 1 or None")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be 0 to 2**63 - 1")
        if self.labels == "teacher" and self.teacher.checkpoint is None:
            raise ValueError(
                "teacher.checkpoint is missing: name the network that makes the labels, or set "
                "labels to 'source' for the source's own depth"
            )
        if self.labels == "source" and self.source is None:
            raise ValueError("labels is 'source', but scenes have no depth: set it to 'teacher'")
        known = getattr(registry.module("backend", self.backend.name), "CONDITIONS", None)
        for condition in self.conditions:
            if known is not None and condition not in known:
                raise ValueError(
                    f"conditions has {condition!r}, which the backend {self.backend.name!r} does "
                    f"not make (it makes {', '.join(known)})"
                )


def from_mapping(mapping: Mapping[str, Any]) -> AdverseConfig:
    """The config of nested dicts.

    Raises:
      ConfigError: see `config.from_mapping`.
    """
    given = dict(mapping)
    if given.get("source", ...) is None:  # `scenes` stand in for it
        del given["source"]
    return configs.from_mapping(AdverseConfig, given, resolve=registry.module)
