"""Evaluation crops: which part of a frame is scored."""

from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation.protocols.frames import Size, show

NYU_SIZE = (480, 640)

# Top, bottom, left, right as fractions of height and width.
_FRACTIONS = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
# The evaluation crops that each family of protocols supports.
CROPS = {
    "any": ("none",),
    "kitti": ("none", "garg", "eigen"),
    "nyu": ("none", "eigen"),
}


def crop_box(dataset: str, crop: str, size: Size) -> tuple[slice, slice]:
    """Rows and columns that an evaluation crop keeps of a frame.

    `garg` (Garg et al. 2016) and `eigen` (Eigen et al. 2014) on KITTI are fractions of the frame's
    sides, truncated to whole pixels; `eigen` on NYU is fixed for 480x640 frames.

    Raises:
        DataError: if an NYU frame has a different size.
    """
    height, width = size
    if crop == "none":
        return slice(0, height), slice(0, width)
    if dataset == "nyu":
        if size != NYU_SIZE:
            raise DataError(f"the NYU eigen crop needs frames of 480x640, not {show(size)}")
        return slice(45, 471), slice(41, 601)
    top, bottom, left, right = _FRACTIONS[crop]
    return (
        slice(int(top * height), int(bottom * height)),
        slice(int(left * width), int(right * width)),
    )
