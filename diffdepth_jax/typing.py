"""Array aliases and the small records that every package shares. Imports no JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

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
        mean, std: per channel, of RGB in [0, 1]: normalised = (image / 255 - mean) / std.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB [..., 3] to float32 [..., 3] as the network expects it."""
        # As long rows: NumPy is ten times slower where the innermost axis has length 3.
        rows = image.reshape(*image.shape[:-2], -1)
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        gain = np.tile(1 / (255 * std), image.shape[-2]).astype(np.float32)
        result = rows * gain
        result -= np.tile(mean / std, image.shape[-2]).astype(np.float32)
        return result.reshape(image.shape)
