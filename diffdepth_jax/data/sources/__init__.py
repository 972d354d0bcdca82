"""One file per data set; each offers `Config`, `build`, `source(split, root, ...)`, `DEPTH_RANGE`.

`mixture` is several of them as one, and has no `source`.
"""

import dataclasses
import os
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np

from diffdepth_jax import registry
from diffdepth_jax.typing import OnError


class Sample(TypedDict):
    """One frame, as files hold it.

    image: uint8 [h w 3], RGB.
    depth: float32 [h w], metres along the optical axis, 0 where nothing was measured.
    intrinsics: float32 [3 3], pixels, integer coordinates at pixel centres; all NaN where the data
      set has no calibration for the frame, so that invented numbers cannot be used by mistake.
    id: unique within the source, usable as a file name.
    condition: weather and light, e.g. "day-clear", "night", "day-rain", "indoor".

    Only some data sets have:

    disparity: float32 [h w], pixels at the image's size, 0 where unknown.
    baseline: metres between the two cameras; depth = baseline * intrinsics[0, 0] / disparity.
    categories: uint8 [h w], Booster's classes of materials, 0 the easiest and 3 the hardest.
    tom_mask: bool [h w], the transparent or mirroring surfaces, which are classes 2 and 3.
    clean_image: uint8 [h w 3], RGB, the image that `image` was generated from.
    relative_disparity: float32 [h w], a relative teacher's label as predicted: larger is nearer, of
      unknown scale and shift, NaN where unknown. Depth is then its inverse, 0 where it is not
      positive.

    `transforms.augment` adds on request:

    inside: bool [h w], False where something from outside the frame has come into the image.
    """

    image: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    id: str
    condition: str
    disparity: NotRequired[np.ndarray]
    baseline: NotRequired[float]
    categories: NotRequired[np.ndarray]
    tom_mask: NotRequired[np.ndarray]
    clean_image: NotRequired[np.ndarray]
    relative_disparity: NotRequired[np.ndarray]
    inside: NotRequired[np.ndarray]


class Source(Protocol):
    """Random access to the frames of a data set, always in the same order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def build_source(config: Any, on_error: OnError = "raise", clean_images: bool = True) -> Source:
    """Opens the source that a source config (`kitti.Config`, `nyu.Config`) describes.

    In its folders, the fields called `root` and `*_root`, a leading ~ is the user's home. Where
    frames that cannot be read are to be skipped, missing files are not looked for beforehand.
    Without `clean_images`, sources that could leave them unread do so.
    """
    changes = {name: path for name, path in vars(config).items() if name.endswith("root") and path}
    changes = {name: os.path.expanduser(path) for name, path in changes.items()}
    if on_error == "skip":
        changes["check_files"] = False
    if not clean_images and hasattr(config, "clean_images"):
        changes["clean_images"] = False
    return registry.module("source", config.name).build(dataclasses.replace(config, **changes))
