"""Averaging a prediction with that of the mirrored image, in inverse depth.

The plain average of depths is `DepthModel.predict(..., flip_tta=True)`; this one is md4all's and
Monodepth2's post-processing (Godard et al. 2017), the `_pp` of md4all's tables.
"""

from collections.abc import Callable

import numpy as np

_SMALLEST = 1e-6  # of depth and of inverse depth before they are inverted, as in md4all
_BORDER, _RAMP = 0.05, 0.05  # shares of the width


def average_with_ramps(disparity: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """One inverse depth map of two.

    In the middle it is their mean. Within a twentieth of the width from the left border the second
    map alone counts, from the right border the first, as networks trained on stereo pairs see
    nothing there; over the next twentieth one goes over into the other.

    Args:
      disparity: inverse depth float [h, w], any scale.
      mirrored: the same of the mirrored image, mirrored back.

    Returns:
      float64 [h, w].
    """
    position = np.linspace(0, 1, disparity.shape[1])[None, :]
    left = 1 - np.clip((position - _BORDER) / _RAMP, 0, 1)
    right = left[:, ::-1]
    first, second = disparity.astype(np.float64), mirrored.astype(np.float64)
    return right * first + left * second + (1 - left - right) * (first + second) / 2


def in_inverse_depth(
    predict_fn: Callable[[np.ndarray], np.ndarray], *, predicts: str = "depth"
) -> Callable[[np.ndarray], np.ndarray]:
    """A prediction function that averages those of the image and its mirror image so.

    Args:
      predict_fn: image uint8 [h, w, 3] to depth or disparity [h, w].
      predicts: which of the two; `depth` is inverted for the average, and back.
    """

    def predict(image: np.ndarray) -> np.ndarray:
        maps = predict_fn(image), predict_fn(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]
        if predicts == "disparity":
            return average_with_ramps(*maps)
        return inverse(average_with_ramps(*map(inverse, maps)))

    return predict


def inverse(array: np.ndarray) -> np.ndarray:
    """Depth to inverse depth or back, float64; what is below 1e-6 counts as that."""
    return 1 / np.maximum(array.astype(np.float64), _SMALLEST)
