"""Ground truth for transparent and mirror objects (ToM): Booster's disparity, and the classes.

Follows the public evaluation of Depth4ToM (Costanzino et al. 2023), as does the adverse-conditions
paper: Booster's ground truth is used at a quarter of its size, and results are given for all
pixels, for transparent or mirror pixels (ToM) and for the others, each averaged over the images
that have such pixels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation.protocols import frames

_TOM_CATEGORIES = (2, 3)  # in Booster's `mask_cat.png`


def booster_depth(sample: Mapping[str, Any]) -> np.ndarray:
    """Depth of a Booster sample at a quarter of its size, float64 [h/4, w/4] in metres, 0 where
    unknown.

    Args:
        sample: has `disparity` [h, w] in pixels (0 = unknown), `baseline` in metres and
            `intrinsics`. Disparity and focal length scale with the image.

    Raises:
        DataError: if the sample is not from Booster.
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
            f"the sample has no {' and no '.join(absent)}: use this protocol with sources that "
            "provide them, such as booster and cleargrasp"
        )
