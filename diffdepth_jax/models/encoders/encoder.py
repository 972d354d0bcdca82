"""The interface of encoders: what every other file in this folder provides."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn

from diffdepth_jax.models.tables import Layout
from diffdepth_jax.weights.rules import Rules


@runtime_checkable
class EncoderConfig(Protocol):
    """What an encoder's config provides besides its own fields.

    Attributes:
        name: the encoder's name in the registry.
        channels: channels of each feature map, fine to coarse.
        reductions: stride of each feature map in pixels.
    """

    name: str

    @property
    def channels(self) -> tuple[int, ...]: ...

    @property
    def reductions(self) -> tuple[int, ...]: ...


@runtime_checkable
class EncoderFile(Protocol):
    """What the file of an encoder provides.

    Attributes:
        Config: the config class, a frozen dataclass that is an `EncoderConfig`.
        VARIANTS: predefined configs by name.
        Encoder: the module, `Encoder(config, dtype=...)`; called with `(image, train=False)`, it
            returns `typing.Features`.
        LAYOUTS: the layouts of pretrained weights that it can load, by name.
    """

    Config: type
    VARIANTS: Mapping[str, Any]
    Encoder: type[nn.Module]
    LAYOUTS: Mapping[str, Layout]

    def rules(self, config: Any) -> Rules:
        """The conversion table for the names that networks use."""

    def infer(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """The config inferred from the names and shapes of weights, or None."""


class ForImageSize:
    """Capability of a config: the encoder was pretrained on square images of one size."""

    @property
    def image_size(self) -> int | None:
        """Side of these images in pixels; None if the config sets none."""
        raise NotImplementedError

    @property
    def fixed_size(self) -> bool:
        """Whether the encoder only accepts images of this size."""
        return False


class HasClassTokens:
    """Capability of a config: the encoder has class tokens.

    Its module's method `with_class_tokens(image, train=False)` returns the features and, for each
    level, the class token [b, channels] or None.
    """

    @property
    def class_levels(self) -> tuple[bool, ...]:
        """Whether each level has one, fine to coarse."""
        raise NotImplementedError


class OfPatches(HasClassTokens):
    """Capability of a config: images are split into patches, which stay tokens in every block.

    All maps have the stride of a patch, and each has a class token.

    Attributes:
        patch_size: side of a patch in pixels. Image sides should be multiples of it.
        embed_dim: channels of the tokens.
        taps: blocks whose output tokens are the features.
    """

    patch_size: int
    embed_dim: int
    taps: tuple[int, ...]

    @property
    def channels(self) -> tuple[int, ...]:
        return (self.embed_dim,) * len(self.taps)

    @property
    def reductions(self) -> tuple[int, ...]:
        return (self.patch_size,) * len(self.taps)

    @property
    def class_levels(self) -> tuple[bool, ...]:
        return (True,) * len(self.taps)


def multiple(config: EncoderConfig) -> int:
    """The number of pixels that image sides should be multiples of."""
    return config.patch_size if isinstance(config, OfPatches) else 1


def layers_to_the_end(parts: Iterable[str]) -> dict[str, int]:
    """Depth of each part below the rest of the network, for layer-wise learning rates.

    All encoders use the same naming scheme. Output norms are at depth 0, like the rest of the
    network, the last block is at 1, the block before it at 2, and so on. Downsampling counts with
    the last block of its stage, and a stage of parallel paths counts as one block. The stem and a
    transformer's embeddings are one deeper than the first block (as in BEiT's fine-tuning, Bao et
    al. 2021, arXiv:2106.08254).

    Args:
        parts: the top-level names in the encoder's params, such as "stage0_block1".
    """
    parts = list(parts)
    places: dict[str, tuple[int, int]] = {}  # stage and block
    for part in parts:
        if found := re.fullmatch(r"(?:stage|layer)(\d+)_block(\d+)", part):
            places[part] = (int(found[1]), int(found[2]))
        elif found := re.fullmatch(r"block(\d+)", part):
            places[part] = (len(parts), int(found[1]))  # after all stages
    blocks = dict(sorted(places.values()))  # the last block of each stage
    for part in parts:
        if part not in places and (found := re.match(r"stage(\d+)_", part)):
            stage = int(found[1])
            places[part] = (stage, blocks.get(stage, 0))
    order = sorted(set(places.values()), reverse=True)
    first = len(order) + 1
    return {
        part: order.index(places[part]) + 1
        if part in places
        else 0
        if re.fullmatch(r"norm\d*", part)
        else first
        for part in parts
    }
