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
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageStat

from diffdepth_jax.data import geometry
from diffdepth_jax.data.geometry import KB_SIZE, NYU_ROWS
from diffdepth_jax.data.sources import Sample
from diffdepth_jax.errors import DataError

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
      A frame of `config.crop` pixels, without the arrays that only some data sets have (`tom_mask`
      and the like): they are not augmented. Depth is 0 where rotation brought in pixels from
      outside the frame (the image is black there) and, on NYU, where the bilinear resize would have
      mixed measured with unmeasured pixels (the original mixes; dense depth is the same either
      way).

    Raises:
      DataError: if the frame can be smaller than the crop.
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
        depth = depth.rotate(degrees, Image.Resampling.NEAREST)
        pixel_map = geometry.rotation_map((height, width), degrees) @ pixel_map
    if kitti:
        top, left = (
            int(u * (full - cut + 1)) for u, full, cut in zip(place, size, config.crop, strict=True)
        )
    else:
        top, left = (round((full - cut) / 2) for full, cut in zip(size, config.crop, strict=True))
    box = (left, top, left + config.crop[1], top + config.crop[0])
    if kitti:
        image = _kitti_image(image, degrees, jitter, size, box)
        depth = depth.resize(size[::-1], Image.Resampling.NEAREST).crop(box)
    else:
        image = image.rotate(degrees, Image.Resampling.NEAREST)
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
        image = _jittered(image, jitter, order).crop(box)
        depth = _resized_depth(depth, size).crop(box)

    pixel_map = geometry.resize_map((height, width), size) @ pixel_map
    pixel_map = geometry.crop_map(top, left) @ pixel_map
    others = {name: value for name, value in sample.items() if not isinstance(value, np.ndarray)}
    return {
        **others,
        "image": np.asarray(image),
        "depth": np.asarray(depth) / np.float32(factor),
        "intrinsics": (pixel_map @ sample["intrinsics"]).astype(np.float32),
    }


def kb_crop(sample: Sample) -> Sample:
    """Cuts a KITTI frame to the 352x1216 pixels at the bottom centre (BTS, AdaBins).

    Raises:
      DataError: if the frame is smaller.
    """
    try:
        top, left = geometry.kb_corner(sample["depth"].shape)
    except DataError as error:
        raise DataError(
            f"{sample['id']}: {error}: it is no full KITTI frame; set pre_crop to none"
        ) from error
    rows, columns = slice(top, top + KB_SIZE[0]), slice(left, left + KB_SIZE[1])
    cropped = {
        name: value[rows, columns]
        for name, value in sample.items()
        if isinstance(value, np.ndarray) and value.shape[:2] == sample["depth"].shape
    }
    intrinsics = geometry.crop_map(top, left) @ sample["intrinsics"]
    return {**sample, **cropped, "intrinsics": intrinsics.astype(np.float32)}


def _resized(sample: Sample, rows: int, factor: float) -> tuple[int, int]:
    """(height, width) after a resize to rows * factor that keeps the aspect ratio."""
    return geometry.size_of_rows(sample["depth"].shape, int(rows * factor))


def _require_room(sample: Sample, smallest: tuple[int, int], config: Augmentation) -> None:
    # Checked at the smallest draw, so that the same frame does not fail by chance hours later.
    if smallest[0] < config.crop[0] or smallest[1] < config.crop[1]:
        height, width = sample["depth"].shape
        raise DataError(
            f"{sample['id']} is {height}x{width} and can become {smallest[0]}x{smallest[1]}, "
            f"smaller than the crop {config.crop[0]}x{config.crop[1]}: choose a smaller crop or "
            "a larger scale"
        )


def _jittered(image: Image.Image, factors: np.ndarray, order: object) -> Image.Image:
    for index in order:
        if factors[index] != 1:
            image = _ENHANCE[index](image).enhance(factors[index])
    return image


def _kitti_image(
    image: Image.Image,
    degrees: float,
    factors: np.ndarray,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
) -> Image.Image:
    """Rotates, jitters, resizes to (height, width) and crops, computing what the box needs only.

    As each step on the whole frame, in half the time: turning by bicubic interpolation is most of
    the work. The only difference is that contrast is changed about a mean that is taken of a sample
    of a large frame's pixels; rounded, it may be one of 255 off.
    """
    y, x = image.height / size[0], image.width / size[1]
    left, top, right, bottom = (side * step for side, step in zip(box, (x, y, x, y), strict=True))
    right, bottom = min(right, image.width), min(bottom, image.height)
    margin = math.ceil(2 * max(x, y, 1)) + 1  # which a bicubic resize looks at around the box
    window = (
        max(math.floor(left) - margin, 0),
        max(math.floor(top) - margin, 0),
        min(math.ceil(right) + margin, image.width),
        min(math.ceil(bottom) + margin, image.height),
    )
    part = _rotated_window(image, degrees, window)
    if factors[0] != 1 or factors[1] != 1:
        brightness = _levels(0, factors[0])
        # Contrast is about the mean of the whole frame, turned and brightened.
        frame = _rotated_window(image, degrees, (0, 0, *image.size), step=1 + image.height // 100)
        mean = ImageStat.Stat(frame.point(brightness * 3).convert("L")).mean[0]
        contrast = _levels(int(mean + 0.5), factors[1])
        part = part.point([contrast[level] for level in brightness] * 3)
    if factors[2] != 1:
        part = ImageEnhance.Color(part).enhance(factors[2])
    inside = (left - window[0], top - window[1], right - window[0], bottom - window[1])
    crop = box[2] - box[0], box[3] - box[1]
    return part.resize(crop, Image.Resampling.BICUBIC, inside)


def _levels(middle: int, factor: float) -> list[int]:
    """What becomes of the values 0 to 255 as they are moved away from `middle` by a factor."""
    values = Image.frombytes("L", (256, 1), bytes(range(256)))
    return list(Image.blend(Image.new("L", (256, 1), middle), values, factor).tobytes())


def _rotated_window(
    image: Image.Image, degrees: float, window: tuple[int, int, int, int], step: int = 1
) -> Image.Image:
    """`image.rotate(degrees, BICUBIC).crop(window)`, computing the pixels of the window only.

    With a step larger than 1 only one of so many rows and columns, where there is a turn at all.
    """
    if not degrees:
        return image.crop(window)
    left, top, right, bottom = window
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Where the window's corner comes from: a turn about the middle of the image.
    x, y = left - image.width / 2, top - image.height / 2
    corner = (cosine * x - sine * y + image.width / 2, sine * x + cosine * y + image.height / 2)
    turn = (step * cosine, -step * sine, corner[0], step * sine, step * cosine, corner[1])
    size = (right - left) // step, (bottom - top) // step
    return image.transform(size, Image.Transform.AFFINE, turn, Image.Resampling.BICUBIC)


def _resized_depth(depth: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bilinear resize that keeps pixels only where every contributing depth was measured."""
    measured = Image.fromarray((np.asarray(depth) > 0).astype(np.float32))
    new_size, bilinear = size[::-1], Image.Resampling.BILINEAR
    share = np.asarray(measured.resize(new_size, bilinear))
    return Image.fromarray(np.where(share > 0.999, depth.resize(new_size, bilinear), np.float32(0)))
