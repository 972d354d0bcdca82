"""One file per data set, with `Config`, `build`, `source(split, root, ...)` and `DEPTH_RANGE`.

`mixture` combines several of them and has no `source`.
"""

import dataclasses
import os
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np

from diffdepth_jax import registry
from diffdepth_jax.typing import OnError


class Sample(TypedDict):
    """One frame, as stored in files.

    Only some data sets have what follows `condition`. `transforms.augment` adds `inside` on
    request.

    Attributes:
        image: uint8 [h w 3], RGB.
        depth: float32 [h w], metres along the optical axis, 0 where unmeasured.
        intrinsics: float32 [3 3], pixels, integer coordinates at pixel centres; all NaN if the data
            set has no calibration for the frame, so that no made-up values are used by mistake.
        id: unique within the source, usable as a file name.
        condition: weather and light, e.g. "day-clear", "night", "day-rain", "indoor".
        disparity: float32 [h w], pixels at the image's size, 0 where unknown.
        baseline: metres between the two cameras; depth = baseline * intrinsics[0, 0] / disparity.
        categories: uint8 [h w], Booster's material classes, from 0 (easiest) to 3 (hardest).
        tom_mask: bool [h w], transparent or mirror surfaces (classes 2 and 3).
        clean_image: uint8 [h w 3], RGB, the image that `image` was generated from.
        relative_disparity: float32 [h w], the prediction of a relative teacher: larger is nearer,
            with unknown scale and shift, NaN where unknown. Depth is then its inverse, 0 where it
            is not positive.
        inside: bool [h w], False where the image shows anything from outside the frame.
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

    In the fields `root` and `*_root`, a leading ~ means the user's home. If unreadable frames are
    to be skipped, missing files are not searched for beforehand. Without `clean_images`, sources do
    not read clean images where that is possible.
    """
    changes = {name: path for name, path in vars(config).items() if name.endswith("root") and path}
    changes = {name: os.path.expanduser(path) for name, path in changes.items()}
    if on_error == "skip":
        changes["check_files"] = False
    if not clean_images and hasattr(config, "clean_images"):
        changes["clean_images"] = False
    return registry.module("source", config.name).build(dataclasses.replace(config, **changes))
