"""Augmentation of a training frame: image, depth, intrinsics and any other fields.

From the public implementation (repository duanyiqun/DiffusionDepth, src/data), which follows NLSPN.
KITTI: flip, rotation (image bicubic, depth nearest), brightness, contrast and saturation in this
order, resize by s (image bicubic, depth nearest), random crop, depth divided by s. NYU: flip,
rotation (both nearest), resize to 240 * s rows (both bilinear), colour jitter in random order,
centre crop, depth divided by s.

Distillation ("Diffusion Models for Monocular Depth Estimation: Overcoming Challenging Conditions",
Tosi et al., 2024): square crops of frames with unchanged aspect ratio, colour jitter, RGB shift and
flip. So a frame is resized to s times the size that just covers the crop, and cropped at random.
The paper gives no ranges. Interpolation is as for KITTI; the paper does not rotate frames:
`rotation=0`.

The crop may be anywhere in the resized KITTI frame, including the sky: the public training commands
leave that implementation's `top_crop` at 0. BTS, AdaBins and their successors first crop to
352x1216 pixels at the bottom centre: `pre_crop="kb"`.

Dividing depth by s corresponds to moving closer: intrinsics follow the pixels, so the resulting
point cloud is the original one shrunk by s.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

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
    """Augmentation of training frames; the defaults are those published for KITTI.

    Attributes:
        name: order, sizes and interpolation: `kitti`, `nyu` or `distillation` (described above).
        crop: (height, width) of the result. Published: 352x906 (Swin) and 352x706 (ResNet) on
            KITTI, 228x304 on NYU; for distillation 384x384 (Depth Anything: 518x518).
        pre_crop: `kb` crops to 352x1216 at the bottom centre first; frames must be at least that
            large.
        flip: probability of a horizontal flip.
        rotation: degrees; the angle is uniform within +- this.
        jitter: brightness, contrast and saturation factors are uniform within 1 +- this.
        rgb_shift: after the jitter, red, green and blue are each shifted by a uniform number of
            levels (of 255) within +- this.
        scale: range of the uniform resize factor s; for `distillation`, relative to the size that
            just covers the crop.
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
            raise ValueError(f"flip is {self.flip}; it must be a probability from 0 to 1")
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
    """Augments a frame at random; the result depends only on `sample`, `config` and `rng`.

    Args:
        sample: as returned by a source; not modified.
        config: the augmentation to sample.
        rng: the random numbers.
        inside: whether to add a mask of pixels that come from inside the frame.

    Returns:
        A frame of `config.crop` pixels. Optional fields are transformed alike: `clean_image` like
        the image but without colour changes; `relative_disparity` like depth but unscaled; masks
        and classes by nearest neighbour. Only `disparity` is dropped, as it duplicates depth. Depth
        is 0 (relative disparity NaN, classes and masks 0) where rotation brought in pixels from
        outside the frame (the image is black there) and, on NYU, where the bilinear resize would
        mix measured with unmeasured pixels (the original mixes them; dense depth is the same either
        way). With `inside`, a mask of that name is added.

    Raises:
        DataError: if the frame can become smaller than the crop.
    """
    if config.pre_crop == "kb":
        sample = kb_crop(sample)
    height, width = sample["depth"].shape
    # All numbers are drawn, used or not, so that disabling one step does not change the others.
    factor, degrees, coin = rng.uniform(*config.scale), rng.uniform(-1, 1), rng.uniform()
    degrees *= config.rotation
    jitter = rng.uniform(1 - config.jitter, 1 + config.jitter, size=3)
    order, place = rng.permutation(3), rng.uniform(size=2)
    # Drawn last, so that it does not affect the others.
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
    return cast(Sample, result)


def kb_crop(sample: Sample) -> Sample:
    """Crops a KITTI frame to 352x1216 pixels at the bottom centre (BTS, AdaBins).

    Raises:
        DataError: if the frame is smaller.
    """
    try:
        top, left = geometry.kb_corner(sample["depth"].shape)
    except DataError as error:
        raise DataError(
            f"{sample['id']}: {error}: it is not a full KITTI frame, so set pre_crop to none"
        ) from error
    rows, columns = slice(top, top + KB_SIZE[0]), slice(left, left + KB_SIZE[1])
    cropped = {
        name: value[rows, columns]
        for name, value in sample.items()
        if isinstance(value, np.ndarray) and value.shape[:2] == sample["depth"].shape
    }
    intrinsics = geometry.crop_map(top, left) @ sample["intrinsics"]
    return cast(Sample, {**sample, **cropped, "intrinsics": intrinsics.astype(np.float32)})


@dataclasses.dataclass(frozen=True)
class _Variation:
    """The transforms of one frame's image, maps and intrinsics, in this order.

    Attributes:
        name: as in `Augmentation`.
        old_size, size: (height, width) before and after the resize.
        box: (left, top, right, bottom) of the crop.
        flip, degrees: before the resize.
        jitter, order: factors of brightness, contrast and saturation, and their order.
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
        """Pixel map from the frame to the result."""
        pixel_map = geometry.flip_map(self.old_size[1]) if self.flip else np.eye(3)
        if self.degrees:
            pixel_map = geometry.rotation_map(self.old_size, self.degrees) @ pixel_map
        pixel_map = geometry.resize_map(self.old_size, self.size) @ pixel_map
        return geometry.crop_map(self.box[1], self.box[0]) @ pixel_map

    def image(self, array: np.ndarray, *, coloured: bool = True) -> np.ndarray:
        """Transforms an image, uint8 [h w 3]; colours only change if `coloured`."""
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
        """Transforms a float32 map [h w], with `unknown` (0 or NaN) in gaps and outside the
        frame."""
        image = self._flipped(array)
        if self.degrees:
            image = image.rotate(self.degrees, Image.Resampling.NEAREST, fillcolor=unknown)
        if self.name == "nyu":
            return np.asarray(_resized_map(image, self.size, unknown).crop(self.box))
        return np.asarray(image.resize(self.size[::-1], Image.Resampling.NEAREST).crop(self.box))

    def other(self, array: np.ndarray) -> np.ndarray:
        """Transforms the optional fields: another image, a label, classes or a mask."""
        if array.ndim == 3:
            return self.image(array, coloured=False)
        if array.dtype.kind == "f":
            return self.map(array, math.nan)
        image = self._flipped(array.astype(np.uint8)).rotate(self.degrees, Image.Resampling.NEAREST)
        image = image.resize(self.size[::-1], Image.Resampling.NEAREST).crop(self.box)
        return np.asarray(image).astype(array.dtype)

    def inside(self) -> np.ndarray:
        """bool [h w]: False where the image shows anything from outside the frame."""
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
    """(height, width) after resizing by `factor` with the aspect ratio kept."""
    size = sample["depth"].shape
    if config.name == "distillation":
        fitting = max(cut / side for cut, side in zip(config.crop, size, strict=True))
        return round(size[0] * fitting * factor), round(size[1] * fitting * factor)
    rows = size[0] if config.name == "kitti" else NYU_ROWS
    return geometry.size_of_rows(size, int(rows * factor))


def _require_room(sample: Sample, smallest: tuple[int, int], config: Augmentation) -> None:
    # Checked for the smallest possible draw, so that a frame does not fail by chance hours later.
    if smallest[0] < config.crop[0] or smallest[1] < config.crop[1]:
        height, width = sample["depth"].shape
        raise DataError(
            f"{sample['id']} is {height}x{width} and can be resized to "
            f"{smallest[0]}x{smallest[1]}, smaller than the crop "
            f"{config.crop[0]}x{config.crop[1]}: choose a smaller crop or a larger scale"
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
    """Rotates, jitters, resizes to (height, width) and crops, computing only what the box needs.

    Equivalent to applying each step to the whole frame, in half the time, as bicubic rotation is
    most of the work. The only difference: contrast uses a mean over a sample of a large frame's
    pixels, which may be off by one level of 255 after rounding.
    """
    y, x = image.height / size[0], image.width / size[1]
    left, top, right, bottom = (side * step for side, step in zip(box, (x, y, x, y), strict=True))
    right, bottom = min(right, image.width), min(bottom, image.height)
    margin = math.ceil(2 * max(x, y, 1)) + 1  # support of the bicubic resize around the box
    window = (
        max(math.floor(left) - margin, 0),
        max(math.floor(top) - margin, 0),
        min(math.ceil(right) + margin, image.width),
        min(math.ceil(bottom) + margin, image.height),
    )
    part = _rotated_window(image, degrees, window)
    if factors[0] != 1 or factors[1] != 1:
        brightness = _levels(0, factors[0])
        # Contrast uses the mean of the whole rotated and brightened frame.
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
    """Lookup table of the values 0 to 255, scaled about `middle` by a factor."""
    values = Image.frombytes("L", (256, 1), bytes(range(256)))
    return list(Image.blend(Image.new("L", (256, 1), middle), values, factor).tobytes())


def _rotated_window(
    image: Image.Image, degrees: float, window: tuple[int, int, int, int], step: int = 1
) -> Image.Image:
    """`image.rotate(degrees, BICUBIC).crop(window)`, but computes only the window's pixels.

    With a step above 1, only every `step`-th row and column, if there is a rotation.
    """
    if not degrees:
        return image.crop(window)
    left, top, right, bottom = window
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Source position of the window's corner: rotation is about the image centre.
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
    """Bilinear resize that only keeps pixels for which all contributing values are known."""
    values = np.asarray(image)
    if math.isnan(unknown):
        known = ~np.isnan(values)
        image = Image.fromarray(np.where(known, values, np.float32(0)))
    else:
        known = values > unknown
    new_size, bilinear = size[::-1], Image.Resampling.BILINEAR
    share = np.asarray(Image.fromarray(known.astype(np.float32)).resize(new_size, bilinear))
    mixed = image.resize(new_size, bilinear)
    return Image.fromarray(np.where(share > 0.999, np.asarray(mixed), np.float32(unknown)))
