"""Backends make the images: one file each, registered as kind "backend".

A backend's file has `Config`, `CONDITIONS`, `USES_PROMPTS`, `title` and `open`; see `Backend`. The
runner opens it before anything else, passes it batches of `Item`s, and keeps track of what is done
and what remains.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from diffdepth_jax.typing import Output


@dataclasses.dataclass(frozen=True)
class Item:
    """One image to be made.

    Attributes:
      key: "<id>/<condition>/<variant>", unique within a run.
      condition: its name in the prompt bank; "scene" for a clean image made from a prompt alone.
      seed: 0 to 2**63 - 1, from the config's seed, the frame's id, the condition and the variant.
      prompt: what the image is to show.
      negative_prompt: what it must not show; may be empty.
      image: the clean image, an RGB PNG of `size`; None for a scene, which is made from nothing.
      control: float32 .npy [h, w], larger = nearer, of any scale: the inverse depth or disparity
        that steers the generator. None for a scene.
      depth: float32 .npy [h, w], dense depth of the clean image, as `depth_is` says; 0 metres where
        unknown, such as the sky of a rendered scene. None for a scene.
      intrinsics: the nine numbers of the camera matrix row by row; None where it is unknown.
      output: the PNG to write, in a folder that exists; under a temporary name at first, one that
        `atomic.remove_leftovers` knows.
      size: (height, width) of `output`, which is the clean image's.
      depth_is: what `depth` holds.
      original: the source's file of the clean image; None where it lists none.
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
      key: the item's.
      error: why there is no image; None if `output` is there.
      details: what the manifest records about the image, in JSON types. The runner understands
        `{"flagged": True}`: the generator's own safety checker blacked out the image.
    """

    key: str
    error: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Session(Protocol):
    """An open backend."""

    def identity(self) -> Mapping[str, Any]:
        """Everything that decides the pixels except the items, in JSON types.

        Hashes of weights, versions, options. A workdir that was started with another identity is
        refused.
        """
        ...

    def check(self, items: Sequence[Item]) -> None:
        """Refuses items that cannot be made, before the first image: sizes, prompts.

        The items' files exist by then. Called before `generate`, with all items that will be passed
        to it.

        Raises:
          UserError: names the item and the remedy.
        """
        ...

    def generate(self, batches: Sequence[Sequence[Item]]) -> Iterator[Outcome]:
        """Makes the images; yields one outcome per item, in any order, as soon as it is known.

        The items of a batch have one size and go through the generator together; an item's pixels
        may depend on its batch, never on other batches. Existing files are replaced. Crashed
        processes are restarted; an item that keeps failing gets an outcome with an `error`.

        Raises:
          UserError: for what affects all of them, such as a full disk.
        """
        ...


class Backend(Protocol):
    """A backend's file.

    Attributes:
      Config: a frozen dataclass with `name` and `batch_size`, the images of a batch (1 where
        batches do not matter).
      CONDITIONS: the conditions that it can make; None for any that has prompts.
      USES_PROMPTS: whether prompts decide the images; if not, they are left empty.
    """

    Config: type
    CONDITIONS: tuple[str, ...] | None
    USES_PROMPTS: bool

    def title(self, config: Any, condition: str) -> str:
        """The name of its images in manifests and tables, such as "diffusers-t2i_adapter"."""
        ...

    def open(
        self, config: Any, *, python: str | None, workdir: Path
    ) -> AbstractContextManager[Session]:
        """Opens the backend, with all checks that need no items.

        Args:
          config: a `Config`.
          python: the interpreter for a separate process; None for the default one.
          workdir: exists; logs go there.

        Raises:
          UserError: for weights, an interpreter and so on that cannot be used, with the remedy.
        """
        ...
