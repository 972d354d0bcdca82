"""Augmentation of one training frame: image, depth, intrinsics and whatever else it has.

Facts from the public implementation (repository duanyiqun/DiffusionDepth, src/data), which took
them from NLSPN. KITTI: flip, rotation (image bicubic, depth nearest), brightness, contrast and
saturation in this order, resize by s (image bicubic, depth nearest), random crop, depth divided by
s. NYU: flip, rotation (both nearest), resize to 240 * s rows (both bilinear), colour jitter in
random order, centre crop, depth divided by s.

Distillation ("Diffusion Models for Monocular Depth Estimation: Overcoming Challenging Conditions",
Tosi et al., 2024): square crops of frames that keep their aspect ratio, colour jitter, RGB shift
and flip; so a frame is resized until it just covers the crop, times s, and cropped at random. The
paper names no ranges. Interpolations are KITTI's; the paper does not turn its frames:
`rotation=0`.

The crop may lie anywhere in the resized KITTI frame, sky included: the public training commands
leave that implementation's `top_crop` at 0. BTS, AdaBins and their successors first cut the frame
to the 352x1216 pixels at the bottom centre: `pre_crop="kb"`.

Dividing depth by s is what moving closer does: intrinsics here follow the pixels, so a point cloud
taken from the result is the original one shrunk by s.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

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
    """How training frames are varied; the defaults are those published for KITTI.

    Attributes:
      name: the order, the sizes and the interpolations, `kitti`, `nyu` or `distillation` (see the
        module).
      crop: (height, width) of what comes out. Published: 352x906 (Swin) and 352x706 (ResNet) on
        KITTI, 228x304 on NYU; for distillation 384x384 (Depth Anything: 518x518).
      pre_crop: `kb` cuts to the 352x1216 bottom centre first; frames must be at least that large.
      flip: probability of mirroring left and right.
      rotation: degrees, the angle is uniform within +- this.
      jitter: brightness, contrast and saturation factors are uniform within 1 +- this.
      rgb_shift: red, green and blue are each moved by a uniform number of levels (of 255) within
        +- this, after the jitter.
      scale: range of the uniform resize factor s; for `distillation` of what just covers the crop.
    """

    name: Literal["kitti", "nyu", "distillation"] = "kitti"
    crop: tuple[int, int] = (352, 906)
    pre_crop: Literal["none", "kb"] = "none"
    flip: float = 0.5
    rotation: float = 5.0
    jitter: float = 0.4
    rgb_shift: float = 0.0
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
        if not 0 <= self.rgb_shift <= 255:
            raise ValueError(f"rgb_shift is {self.rgb_shift}; it must be 0 to 255 levels")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; it must be (low, high) with 0 < low <= high")


def augment(
    sample: Sample, config: Augmentation, rng: np.random.Generator, *, inside: bool = False
) -> Sample:
    """Draws a variation of a frame; everything depends on `sample`, `config` and `rng` alone.

    Args:
      sample: as a source gives it; it is not changed.
      config: what to draw from.
      rng: the random numbers.
      inside: whether to mark pixels that rotation brought in from outside the frame.

    Returns:
      A frame of `config.crop` pixels. Optional fields follow: `clean_image` as the image but for
      the colours, which stay; `relative_disparity` as depth but unscaled; masks and classes by the
      nearest neighbour. Only `disparity` is left out: depth says the same. Depth is 0 (relative
      disparity NaN, classes and masks 0) where rotation brought in pixels from outside the frame
      (the image is black there) and, on NYU, where the bilinear resize would have mixed measured
      with unmeasured pixels (the original mixes; dense depth is the same either way). With `inside`
      also a mask of that name.

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
    # The last draw, so that the others do not depend on it.
    shift = rng.uniform(-1, 1, size=3) * config.rgb_shift if config.rgb_shift else np.zeros(3)

    size = _resized(sample, config, factor)
    _require_room(sample, _resized(sample, config, config.scale[0]), config)
    spare = [full - cut for full, cut in zip(size, config.crop, strict=True)]
    if config.name == "nyu":
        top, left = (round(rest / 2) for rest in spare)
    else:
        top, left = (int(u * (rest + 1)) for u, rest in zip(place, spare, strict=True))
    variation = _Variation(
        name=config.name,
        old_size=(height, width),
        size=size,
        box=(left, top, left + config.crop[1], top + config.crop[0]),
        flip=coin < config.flip,
        degrees=degrees,
        jitter=jitter,
        order=order,
        shift=shift,
    )
    fields: Mapping[str, Any] = sample
    result = {name: value for name, value in fields.items() if not isinstance(value, np.ndarray)}
    result |= {
        "image": variation.image(sample["image"]),
        "depth": variation.map(sample["depth"], 0.0) / np.float32(factor),
        "intrinsics": (variation.pixel_map() @ sample["intrinsics"]).astype(np.float32),
    }
    for name, value in fields.items():
        if name not in (*result, "disparity") and value.shape[:2] == (height, width):
            result[name] = variation.other(value)
    if inside:
        result["inside"] = variation.inside()
    return result


def kb_crop(sample: Sample) -> Sample:
    """Cuts a KITTI frame to the 352x1216 pixels at the bottom centre (BTS, AdaBins).

    Raises:
      DataError: if the frame is smaller.
    """
    try:
        top, left = geometry.kb_corner(sample["depth"].shape)
    except DataError as error:
        raise DataError(
            f"{sample['id']}: {error}: it is not a full KITTI frame; set pre_crop to none"
        ) from error
    rows, columns = slice(top, top + KB_SIZE[0]), slice(left, left + KB_SIZE[1])
    cropped = {
        name: value[rows, columns]
        for name, value in sample.items()
        if isinstance(value, np.ndarray) and value.shape[:2] == sample["depth"].shape
    }
    intrinsics = geometry.crop_map(top, left) @ sample["intrinsics"]
    return {**sample, **cropped, "intrinsics": intrinsics.astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class _Variation:
    """What is done to one frame, in this order: to its image, its maps and its intrinsics.

    Attributes:
      name: as in `Augmentation`.
      old_size, size: (height, width) before and after the resize.
      box: (left, top, right, bottom) of the crop.
      flip, degrees: before the resize.
      jitter, order: factors of brightness, contrast and saturation, and which comes first.
      shift: levels added to red, green and blue.
    """

    name: str
    old_size: tuple[int, int]
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    flip: bool
    degrees: float
    jitter: np.ndarray
    order: np.ndarray
    shift: np.ndarray

    def pixel_map(self) -> np.ndarray:
        """From the frame's pixels to those of the result."""
        pixel_map = geometry.flip_map(self.old_size[1]) if self.flip else np.eye(3)
        if self.degrees:
            pixel_map = geometry.rotation_map(self.old_size, self.degrees) @ pixel_map
        pixel_map = geometry.resize_map(self.old_size, self.size) @ pixel_map
        return geometry.crop_map(self.box[1], self.box[0]) @ pixel_map

    def image(self, array: np.ndarray, *, coloured: bool = True) -> np.ndarray:
        """uint8 [h w 3]; where it is not `coloured`, the colours stay as they are."""
        image = self._flipped(array)
        jitter = self.jitter if coloured else np.ones(3)
        if self.name == "nyu":
            image = image.rotate(self.degrees, Image.Resampling.NEAREST)
            image = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
            image = _jittered(image, jitter, self.order).crop(self.box)
        else:
            image = _kitti_image(image, self.degrees, jitter, self.size, self.box)
        if coloured and self.shift.any():
            image = _shifted(image, self.shift)
        return np.asarray(image)

    def map(self, array: np.ndarray, unknown: float) -> np.ndarray:
        """float32 [h w], `unknown` (0 or NaN) where nothing is known, and outside the frame."""
        image = self._flipped(array)
        if self.degrees:
            image = image.rotate(self.degrees, Image.Resampling.NEAREST, fillcolor=unknown)
        if self.name == "nyu":
            return np.asarray(_resized_map(image, self.size, unknown).crop(self.box))
        return np.asarray(image.resize(self.size[::-1], Image.Resampling.NEAREST).crop(self.box))

    def other(self, array: np.ndarray) -> np.ndarray:
        """What only some data sets have: a further image, a label, classes or a mask."""
        if array.ndim == 3:
            return self.image(array, coloured=False)
        if array.dtype.kind == "f":
            return self.map(array, math.nan)
        image = self._flipped(array.astype(np.uint8)).rotate(self.degrees, Image.Resampling.NEAREST)
        image = image.resize(self.size[::-1], Image.Resampling.NEAREST).crop(self.box)
        return np.asarray(image).astype(array.dtype)

    def inside(self) -> np.ndarray:
        """bool [h w]: False where anything from outside the frame has come into the image."""
        if not self.degrees:
            return np.ones((self.box[3] - self.box[1], self.box[2] - self.box[0]), bool)
        frame = Image.new("F", self.old_size[::-1], 1.0)
        frame = frame.rotate(self.degrees, Image.Resampling.NEAREST)
        nyu = self.name == "nyu"
        method = Image.Resampling.BILINEAR if nyu else Image.Resampling.BICUBIC
        share = np.asarray(frame.resize(self.size[::-1], method).crop(self.box))
        return np.abs(share - 1) < 1e-3

    def _flipped(self, array: np.ndarray) -> Image.Image:
        image = Image.fromarray(array)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else image


def _resized(sample: Sample, config: Augmentation, factor: float) -> tuple[int, int]:
    """(height, width) after a resize by `factor` that keeps the aspect ratio."""
    size = sample["depth"].shape
    if config.name == "distillation":
        fitting = max(cut / side for cut, side in zip(config.crop, size, strict=True))
        return round(size[0] * fitting * factor), round(size[1] * fitting * factor)
    rows = size[0] if config.name == "kitti" else NYU_ROWS
    return geometry.size_of_rows(size, int(rows * factor))


def _require_room(sample: Sample, smallest: tuple[int, int], config: Augmentation) -> None:
    # Checked at the smallest draw, so that the same frame does not fail by chance hours later.
    if smallest[0] < config.crop[0] or smallest[1] < config.crop[1]:
        height, width = sample["depth"].shape
        raise DataError(
            f"{sample['id']} is {height}x{width} and can become {smallest[0]}x{smallest[1]}, "
            f"smaller than the crop {config.crop[0]}x{config.crop[1]}: choose a smaller crop or "
            "a larger scale"
        )


def _jittered(image: Image.Image, factors: np.ndarray, order: np.ndarray) -> Image.Image:
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
    """Rotates, jitters, resizes to (height, width) and crops; computes only what the box needs.

    As each step on the whole frame, in half the time: turning by bicubic interpolation is most of
    the work. The only difference is that contrast is changed about a mean over a sample of a large
    frame's pixels; rounded, it may be one of 255 off.
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


def _shifted(image: Image.Image, shift: np.ndarray) -> Image.Image:
    """Adds levels to red, green and blue."""
    levels = np.clip(np.rint(np.arange(256) + shift[:, None]), 0, 255)
    return image.point(levels.astype(int).ravel().tolist())


def _resized_map(image: Image.Image, size: tuple[int, int], unknown: float) -> Image.Image:
    """Bilinear resize that keeps pixels only where every contributing value was known."""
    values = np.asarray(image)
    if math.isnan(unknown):
        known = ~np.isnan(values)
        image = Image.fromarray(np.where(known, values, np.float32(0)))
    else:
        known = values > unknown
    new_size, bilinear = size[::-1], Image.Resampling.BILINEAR
    share = np.asarray(Image.fromarray(known.astype(np.float32)).resize(new_size, bilinear))
    mixed = image.resize(new_size, bilinear)
    return Image.fromarray(np.where(share > 0.999, mixed, np.float32(unknown)))
