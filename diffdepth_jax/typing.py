"""Array aliases and the small records that every package shares. Imports no JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

# A training batch (b images of h x w pixels):
#   image       float32 [b, h, w, 3]  normalised by the network's INPUT mean and std
#   depth       float32 [b, h, w, 1]  metres, 0 where nothing was measured
#   valid_mask  bool    [b, h, w, 1]
#   intrinsics  float32 [b, 3, 3]     pixels; NaN where the data set has no calibration
#   id          list of str           stays on the host
Batch = Mapping[str, Any]

# What an encoder returns: arrays [b, h / reduction, w / reduction, channels], fine to coarse.
Features = tuple[Any, ...]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What a network expects of its image; declared by networks, obeyed by data and inference.

    Attributes:
      size: (height, width) in pixels that images are resized to, or None for any size.
      multiple: sides are made multiples of this number of pixels.
      bound: with `size`, how a resize that keeps the aspect ratio treats it: both sides at least
        (`lower`) or at most (`upper`) the size, or `exact` for a resize that does not keep it.
        Without `size`, images keep their size and are padded at the bottom and right (`pad`).
      interpolation: of a resize, by Pillow's names (`bilinear`, `bicubic`).
      mean, std: per channel, of RGB in [0, 1]: normalised = (image / 255 - mean) / std.
    """

    size: tuple[int, int] | None = None
    multiple: int = 1
    bound: Literal["lower", "upper", "exact", "pad"] = "pad"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
