"""Augmentation of one training frame: image, depth and intrinsics together.

Facts from the public implementation (repository duanyiqun/DiffusionDepth, src/data), which took
them from NLSPN. KITTI: flip, rotation (image bicubic, depth nearest), brightness, contrast and
saturation in this order, resize by s (image bicubic, depth nearest), random crop, depth divided by
s. NYU: flip, rotation (both nearest), resize to 240 * s rows (both bilinear), colour jitter in
random order, centre crop, depth divided by s.

The crop may lie anywhere in the resized KITTI frame, sky included: the public training commands
leave that implementation's `top_crop` at 0. BTS, AdaBins and their successors first cut the frame
to the 352x1216 pixels at the bottom centre: `pre_crop="kb"`.

Dividing depth by s is what moving closer does: intrinsics here follow the pixels, so a point cloud
taken from the result is the original one shrunk by s.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance

from diffdepth_jax.data import geometry
from diffdepth_jax.data.geometry import KB_SIZE, NYU_ROWS
from diffdepth_jax.data.sources import Sample

_ENHANCE: tuple[Callable[..., ImageEnhance._Enhance], ...] = (
    ImageEnhance.Brightness,
    ImageEnhance.Contrast,
    ImageEnhance.Color,
)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training frames are varied; the defaults are the published values.

    Attributes:
      name: the order and the interpolations, `kitti` or `nyu` (see the module).
      crop: (height, width) of what comes out. Published: 352x906 (Swin) and 352x706 (ResNet) on
        KITTI, 228x304 on NYU.
      pre_crop: `kb` cuts to the 352x1216 bottom centre first; frames must be at least that large.
      flip: probability of mirroring left and right.
      rotation: degrees, the angle is uniform within +- this.
      jitter: brightness, contrast and saturation factors are uniform within 1 +- this.
      scale: range of the uniform resize factor s.
    """

    name: Literal["kitti", "nyu"] = "kitti"
    crop: tuple[int, int] = (352, 906)
    pre_crop: Literal["none", "kb"] = "none"
    flip: float = 0.5
    rotation: float = 5.0
    jitter: float = 0.4
    scale: tuple[float, float] = (1.0, 1.5)

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise ValueError(f"crop is {self.crop}; both sides must be positive")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}; it is a probability, 0 to 1")
        if not 0 <= self.rotation < 90:
            raise ValueError(f"rotation is {self.rotation}; it must be 0 to 90 degrees")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is {self.jitter}; it must be 0 to 1")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; it must be (low, high) with 0 < low <= high")


def augment(sample: Sample, config: Augmentation, rng: np.random.Generator) -> Sample:
    """Draws a variation of a frame; everything depends on `sample`, `config` and `rng` alone.

    Args:
      sample: as a source gives it; it is not changed.
      config: what to draw from.
      rng: the random numbers.

    Returns:
      A frame of `config.crop` pixels. Depth is 0 where rotation brought in pixels from outside the
      frame (the image is black there) and, on NYU, where the bilinear resize would have mixed
      measured with unmeasured pixels (the original mixes; dense depth is the same either way).

    Raises:
      ValueError: if the frame can be smaller than the crop.
    """
    if config.pre_crop == "kb":
        sample = kb_crop(sample)
    height, width = sample["depth"].shape
    # Every number is drawn, whether used or not: switching one step off leaves the others alone.
    factor, degrees, coin = rng.uniform(*config.scale), rng.uniform(-1, 1), rng.uniform()
    degrees *= config.rotation
    jitter = rng.uniform(1 - config.jitter, 1 + config.jitter, size=3)
    order, place = rng.permutation(3), rng.uniform(size=2)
    kitti = config.name == "kitti"

    rows = height if kitti else NYU_ROWS
    size = _resized(sample, rows, factor)
    _require_room(sample, _resized(sample, rows, config.scale[0]), config)
    image, depth = Image.fromarray(sample["image"]), Image.fromarray(sample["depth"])
    pixel_map = np.eye(3)

    if coin < config.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        depth = depth.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixel_map = geometry.flip_map(width)
    if degrees:
        bicubic, nearest = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
        image = image.rotate(degrees, bicubic if kitti else nearest)
        depth = depth.rotate(degrees, nearest)
        pixel_map = geometry.rotation_map((height, width), degrees) @ pixel_map
    if kitti:
        top, left = (
            int(u * (full - cut + 1)) for u, full, cut in zip(place, size, config.crop, strict=True)
        )
    else:
        top, left = (round((full - cut) / 2) for full, cut in zip(size, config.crop, strict=True))
    box = (left, top, left + config.crop[1], top + config.crop[0])
    if kitti:
        image = _resized_window(_jittered(image, jitter, (0, 1, 2)), size, box)
        depth = depth.resize(size[::-1], Image.Resampling.NEAREST).crop(box)
    else:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
        image = _jittered(image, jitter, order).crop(box)
        depth = _resized_depth(depth, size).crop(box)

    pixel_map = geometry.resize_map((height, width), size) @ pixel_map
    pixel_map = geometry.crop_map(top, left) @ pixel_map
    return {
        **sample,
        "image": np.asarray(image),
        "depth": np.asarray(depth) / np.float32(factor),
        "intrinsics": (pixel_map @ sample["intrinsics"]).astype(np.float32),
    }


def kb_crop(sample: Sample) -> Sample:
    """Cuts a KITTI frame to the 352x1216 pixels at the bottom centre (BTS, AdaBins).

    Raises:
      ValueError: if the frame is smaller.
    """
    try:
        top, left = geometry.kb_corner(sample["depth"].shape)
    except ValueError as error:
        raise ValueError(
            f"{sample['id']}: {error}: it is no full KITTI frame; set pre_crop to none"
        ) from error
    rows, columns = slice(top, top + KB_SIZE[0]), slice(left, left + KB_SIZE[1])
    intrinsics = geometry.crop_map(top, left) @ sample["intrinsics"]
    return {
        **sample,
        "image": sample["image"][rows, columns],
        "depth": sample["depth"][rows, columns],
        "intrinsics": intrinsics.astype(np.float32),
    }


def _resized(sample: Sample, rows: int, factor: float) -> tuple[int, int]:
    """(height, width) after a resize to rows * factor that keeps the aspect ratio."""
    return geometry.size_of_rows(sample["depth"].shape, int(rows * factor))


def _require_room(sample: Sample, smallest: tuple[int, int], config: Augmentation) -> None:
    # Checked at the smallest draw, so that the same frame does not fail by chance hours later.
    if smallest[0] < config.crop[0] or smallest[1] < config.crop[1]:
        height, width = sample["depth"].shape
        raise ValueError(
            f"{sample['id']} is {height}x{width} and can become {smallest[0]}x{smallest[1]}, "
            f"smaller than the crop {config.crop[0]}x{config.crop[1]}: choose a smaller crop or "
            "a larger scale"
        )


def _jittered(image: Image.Image, factors: np.ndarray, order: object) -> Image.Image:
    for index in order:
        if factors[index] != 1:
            image = _ENHANCE[index](image).enhance(factors[index])
    return image


def _resized_window(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]
) -> Image.Image:
    """`image.resize(size).crop(box)`, computing the pixels of the box only."""
    left, top, right, bottom = box
    y, x = image.height / size[0], image.width / size[1]
    window = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    return image.resize((right - left, bottom - top), Image.Resampling.BICUBIC, window)


def _resized_depth(depth: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bilinear resize that keeps pixels only where every contributing depth was measured."""
    measured = Image.fromarray((np.asarray(depth) > 0).astype(np.float32))
    new_size, bilinear = size[::-1], Image.Resampling.BILINEAR
    share = np.asarray(measured.resize(new_size, bilinear))
    return Image.fromarray(np.where(share > 0.999, depth.resize(new_size, bilinear), np.float32(0)))
