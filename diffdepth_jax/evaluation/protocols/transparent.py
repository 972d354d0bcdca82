"""Ground truth of transparent and mirroring objects (ToM): Booster's disparity, and the classes.

Rules of the public evaluation of Depth4ToM (Costanzino et al. 2023), which the adverse-conditions
paper follows: Booster's ground truth is taken at a quarter of its size, and figures are given for
all pixels, for those of transparent or mirroring material (ToM) and for the others, each a mean
over the images that have such pixels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation.protocols import frames

_TOM_CATEGORIES = (2, 3)  # of Booster's `mask_cat.png`


def booster_depth(sample: Mapping[str, Any]) -> np.ndarray:
    """Depth of a sample of Booster at a quarter of its size, float64 [h/4, w/4] in metres, 0 where
    it is unknown.

    Args:
      sample: with `disparity` [h, w] in pixels (0 = unknown), `baseline` in metres and
        `intrinsics`. Disparity and focal length shrink with the image.

    Raises:
      DataError: if the sample is not Booster's.
    """
    _require(sample, "disparity", "baseline")
    disparity = frames.quarter(sample["disparity"]).astype(np.float64) / 4
    focal_length = float(sample["intrinsics"][0, 0]) / 4
    known = disparity > 0
    depth = focal_length * float(sample["baseline"]) / np.where(known, disparity, 1)
    return np.where(known, depth, 0)


def class_masks(sample: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The pixels of each class, bool [h, w], from the sample's `tom_mask` or `categories`.

    Raises:
      DataError: if the sample has neither.
    """
    if "tom_mask" in sample:
        tom = sample["tom_mask"]
    else:
        _require(sample, "categories")
        tom = np.isin(sample["categories"], _TOM_CATEGORIES)
    return {"ToM": tom, "Other": ~tom}


def _require(sample: Mapping[str, Any], *keys: str) -> None:
    if absent := [key for key in keys if key not in sample]:
        raise DataError(
            f"the sample has no {' and no '.join(absent)}: this protocol is meant for sources with "
            "them, such as booster and cleargrasp"
        )
