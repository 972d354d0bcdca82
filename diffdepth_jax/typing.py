"""Array aliases and small records shared by all packages. Does not import JAX."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

# A training batch (b images of h x w pixels):
#   image       float32 [b, h, w, 3]  normalised by the network's INPUT mean and std
#   depth       float32 [b, h, w, 1]  metres, 0 where unmeasured
#   valid_mask  bool    [b, h, w, 1]
#   intrinsics  float32 [b, 3, 3]     pixels; NaN if the data set has no calibration
#   id          list of str           stays on the host
# if labels are relative (from a relative teacher):
#   relative_disparity  float32 [b, h, w, 1]  larger is nearer, 0 where unknown; `valid_mask` is
#                                             where it is known, `depth` its inverse, without unit
# if a teacher with several scales labels the images (`training.teacher`):
#   inverse_depths  of float32 [b, h / 2^k, w / 2^k, 1]  a tuple in 1/m, finest first
# if clean images are requested (`data.pipeline.train_iterator`):
#   clean_image float32 [b, h, w, 3]  what `image` was generated from, normalised the same way
#   inside      bool    [b, h, w, 1]  False where augmentation brought in pixels from outside
Batch = Mapping[str, Any]

# What an encoder returns: arrays [b, h / reduction, w / reduction, channels], fine to coarse.
Features = tuple[Any, ...]

# Meaning of a network's output or of a label: metres along the optical axis, or inverse depth up to
# an unknown scale and shift (larger is nearer).
Output = Literal["metric_depth", "relative_disparity"]

# What to do with a frame that cannot be read.
OnError = Literal["raise", "skip"]

# What is averaged between a prediction and that of the mirrored image, see `inference.flipping`.
FlipAverage = Literal["depth", "inverse_depth"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The form of a network's input; declared by networks and used by data and inference.

    Sizes follow Depth Anything and MiDaS (`Resize` in their transforms): each side of the image is
    scaled towards the target and rounded to a multiple, so the aspect ratio is kept up to rounding.
    Padding and flip follow ZoeDepth (`DepthModel.infer`).

    Attributes:
        size: target (height, width) in pixels; None for the image's own size.
        keep_aspect: scale both sides by the same factor; otherwise each to its own target.
        bound: which of the two sides' scales to use: the larger ("lower": no side ends below its
            target), the smaller ("upper": no side ends above it), or the one closer to 1
            ("minimal").
        multiple: both sides of the network's input are multiples of this many pixels.
        interpolation: "bicubic" (OpenCV's: a = -0.75, no antialiasing), "bilinear", "pillow"
            (Pillow's bicubic, used by transformers: a = -0.5, antialiased when downscaling, rounded
            to 8 bits), or "lanczos" (Pillow's, with three lobes).
        align_corners: whether the centres of corner pixels are aligned when resizing.
        mean, std: per channel, for RGB in [0, 1]: normalised = (image / 255 - mean) / std.
        output_interpolation, output_align_corners: the same for resizing the network's result back
            to the image's size.
        padding: the image is first reflection-padded by int(padding * sqrt(side / 2)) pixels at
            both ends of each axis. The result is cropped accordingly.
        flip_tta: whether published predictions average those for the image and the mirrored image.
    """

    size: tuple[int, int] | None = None
    keep_aspect: bool = True
    bound: Literal["lower", "upper", "minimal"] = "minimal"
    multiple: int = 1
    interpolation: Literal["bicubic", "bilinear", "pillow", "lanczos"] = "bicubic"
    align_corners: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    output_interpolation: Literal["bicubic", "bilinear"] = "bilinear"
    output_align_corners: bool = False
    padding: float = 0.0
    flip_tta: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size is {self.size}; height and width must be positive")
        if self.multiple < 1:
            raise ValueError(f"multiple is {self.multiple}; it must be at least 1")
        if not min(self.std) > 0:
            raise ValueError(f"std is {self.std}; it must be positive")
        if not self.padding >= 0:
            raise ValueError(f"padding is {self.padding}; it must not be negative")

    def margins(self, height: int, width: int) -> tuple[int, int]:
        """Rows added above and below an image, and columns added left and right."""
        rows, columns = (int(math.sqrt(side / 2) * self.padding) for side in (height, width))
        return rows, columns

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a padded image."""
        rows, columns = self.margins(height, width)
        return height + 2 * rows, width + 2 * columns

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of this size is resized to, after padding."""
        height, width = self.padded_size(height, width)
        targets = self.size or (height, width)
        scales = [target / side for target, side in zip(targets, (height, width), strict=True)]
        if self.keep_aspect:
            if self.bound == "minimal":
                scale = scales[1] if abs(1 - scales[1]) < abs(1 - scales[0]) else scales[0]
            else:
                scale = max(scales) if self.bound == "lower" else min(scales)
            scales = [scale, scale]
        sides = []
        for side, scale, target in zip((height, width), scales, targets, strict=True):
            units = side * scale / self.multiple
            length = round(units) * self.multiple
            if self.bound == "lower" and length < target:
                length = math.ceil(units) * self.multiple
            elif self.bound == "upper" and length > target:
                length = math.floor(units) * self.multiple
            sides.append(max(length, self.multiple))
        return sides[0], sides[1]

    def nearest(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size whose sides are multiples, at least one multiple each."""
        rows, columns = (
            max(round(side / self.multiple), 1) * self.multiple for side in (height, width)
        )
        return rows, columns

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """Normalises RGB [..., 3] in [0, 255] to float32 [..., 3] for the network."""
        # As long rows, because NumPy is ten times slower if the innermost axis has length 3.
        rows = image.reshape(*image.shape[:-2], -1)
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        gain = np.tile(1 / (255 * std), image.shape[-2]).astype(np.float32)
        result = (rows * gain).astype(np.float32, copy=False)
        result -= np.tile(mean / std, image.shape[-2]).astype(np.float32)
        return result.reshape(image.shape)
