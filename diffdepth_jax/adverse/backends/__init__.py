"""Backends generate the images: one file each, registered as kind "backend".

A backend's file has `Config`, `CONDITIONS`, `USES_PROMPTS`, `title` and `open`; see `Backend`. The
runner opens it first, passes it batches of `Item`s, and keeps track of progress.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from diffdepth_jax.typing import Output


@dataclasses.dataclass(frozen=True)
class Item:
    """One image to generate.

    Attributes:
        key: "<id>/<condition>/<variant>", unique within a run.
        condition: its name in the prompt bank; "scene" for a clean image made from a prompt alone.
        seed: 0 to 2**63 - 1, derived from the config's seed, the frame's id, the condition and the
            variant.
        prompt: what the image should show.
        negative_prompt: what it should not show; may be empty.
        image: the clean image, an RGB PNG of `size`; None for a scene, which has none.
        control: float32 .npy [h, w], larger = nearer, at any scale: inverse depth or disparity that
            conditions the generator. None for a scene.
        depth: float32 .npy [h, w], dense depth of the clean image, in the form `depth_is`; 0 metres
            where unknown, for example the sky of a rendered scene. None for a scene.
        intrinsics: the nine numbers of the camera matrix, row by row; None if unknown.
        output: the PNG to write, in an existing folder; written under a temporary name that
            `atomic.remove_leftovers` recognises.
        size: (height, width) of `output`, equal to the clean image's.
        depth_is: what `depth` contains.
        original: the source's file of the clean image; None if the source does not list files.
    """

    key: str
    condition: str
    seed: int
    prompt: str
    negative_prompt: str
    image: Path | None
    control: Path | None
    depth: Path | None
    intrinsics: tuple[float, ...] | None
    output: Path
    size: tuple[int, int]
    depth_is: Output = "metric_depth"
    original: Path | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result for one item.

    Attributes:
        key: the item's key.
        error: why there is no image; None if `output` exists.
        details: what the manifest records about the image, JSON-compatible. The runner interprets
            `{"flagged": True}` as: the generator's safety checker blacked out the image.
    """

    key: str
    error: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Session(Protocol):
    """An open backend."""

    def identity(self) -> Mapping[str, Any]:
        """Everything that determines the pixels, except the items; JSON-compatible.

        For example hashes of weights, versions and options. A workdir that was started with a
        different identity is rejected.
        """
        ...

    def check(self, items: Sequence[Item]) -> None:
        """Rejects items that cannot be generated, for example because of their size or prompt.

        Called before `generate` with all items that will be passed to it; their files already
        exist.

        Raises:
            UserError: names the item and the remedy.
        """
        ...

    def generate(self, batches: Sequence[Sequence[Item]]) -> Iterator[Outcome]:
        """Generates the images; yields one outcome per item, in any order, as soon as it is known.

        All items of a batch have the same size and go through the generator together; an item's
        pixels may depend on its batch, but not on other batches. Existing files are replaced.
        Crashed processes are restarted; an item that keeps failing gets an outcome with an `error`.

        Raises:
            UserError: for problems that affect all items, such as a full disk.
        """
        ...


class Backend(Protocol):
    """A backend's file.

    Attributes:
        Config: a frozen dataclass with `name` and `batch_size`, the images per batch (1 if batches
            do not matter).
        CONDITIONS: the supported conditions; None for any condition with prompts.
        USES_PROMPTS: whether images depend on prompts; if not, these are left empty.
    """

    Config: type
    CONDITIONS: tuple[str, ...] | None
    USES_PROMPTS: bool

    def title(self, config: Any, condition: str) -> str:
        """The name of its images in manifests and tables, for example "diffusers-t2i_adapter"."""
        ...

    def open(
        self, config: Any, *, python: str | None, workdir: Path
    ) -> AbstractContextManager[Session]:
        """Opens the backend, including all checks that do not need items.

        Args:
            config: a `Config`.
            python: the interpreter for a separate process; None for the default one.
            workdir: must exist; used for logs.

        Raises:
            UserError: for unusable weights, an unusable interpreter and so on, with the remedy.
        """
        ...
