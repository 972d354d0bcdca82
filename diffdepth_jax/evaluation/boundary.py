"""Sharpness of depth edges: precision, recall and F-score of occluding contours.

There is a contour at ratio t between two neighbouring pixels if one is more than t times as far
away as the other. A predicted contour is correct if the ground truth has one between the same
pixels, with the same pixel nearer. Ratios do not depend on scale, so predictions need no scale
alignment. Follows Bochkovskii et al. 2024 (Depth Pro, arXiv:2410.02073, section 3.2), with an added
validity mask.

Ground truth must be exact and dense: lidar points have no neighbours.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

# Depth Pro's ratios: F-scores are averaged over them, weighted by the ratio.
AVERAGED_RATIOS = tuple(np.linspace(1.05, 1.25, 10).tolist())
# Reported individually.
RATIOS = (1.05, 1.10, 1.15, 1.20, 1.25)
KINDS = ("f1", "precision", "recall")

METRICS = (
    *(f"boundary_{kind}" for kind in KINDS),
    *(f"boundary_{kind}_{ratio:.2f}" for ratio in RATIOS for kind in KINDS),
)

# Ground truth is dense if this fraction of its valid pixels have a valid neighbour.
_DENSE = 0.9

Pooling = Literal["pairs", "directions"]


class Boundary(NamedTuple):
    """Scores for contours at one ratio, or averaged over several; each from 0 to 1."""

    f1: float
    precision: float
    recall: float


def at_ratio(
    prediction: Float[np.ndarray, "h w"],
    target: Float[np.ndarray, "h w"],
    valid_mask: Bool[np.ndarray, "h w"],
    ratio: float,
    pooling: Pooling = "pairs",
) -> Boundary | None:
    """Scores a prediction's contours against the ground truth's, between valid pixels.

    Args:
        prediction, target: metres, each up to a scale factor; positive and finite where valid.
        valid_mask: the pixels to score.
        ratio: how many times as far away the farther pixel must be; above 1.
        pooling: "pairs" pools all pairs of neighbours, as in the paper's equations. "directions"
            averages the precisions and recalls of the four directions in which the nearer pixel can
            lie, with 0 for a direction without contours, as in the authors' code: even a perfect
            prediction then scores below 1 if the ground truth lacks a direction.

    Returns:
        None if the ground truth has no contour, so whether an image counts does not depend on the
        prediction. A prediction without contours has precision 0.

    Raises:
        ValueError: for a ratio that is not above 1.
    """
    return _scores(prediction, target, valid_mask, [ratio], pooling)[0]


def average(scores: Sequence[Boundary | None], ratios: Sequence[float]) -> Boundary | None:
    """The mean over the ratios at which the ground truth has contours, weighted by the ratio."""
    known = [(score, ratio) for score, ratio in zip(scores, ratios, strict=True) if score]
    if not known:
        return None
    total = math.fsum(ratio for _, ratio in known)
    return Boundary(
        *(math.fsum(score[kind] * ratio for score, ratio in known) / total for kind in range(3))
    )


def compute(
    prediction: Float[np.ndarray, "h w"],
    target: Float[np.ndarray, "h w"],
    valid_mask: Bool[np.ndarray, "h w"],
) -> dict[str, float]:
    """The boundary metrics of one image.

    `boundary_f1`, `boundary_precision` and `boundary_recall` are averages over `AVERAGED_RATIOS`;
    with suffixes such as `_1.05`, they are at one of `RATIOS`. Pooled over pairs.

    Args:
        prediction, target, valid_mask: as in `at_ratio`.

    Returns:
        Values by the names in `METRICS`; without ratios at which the ground truth has no contour.

    Raises:
        ValueError: if depth is not positive and finite at a valid pixel.
    """
    ratios = (*AVERAGED_RATIOS, *RATIOS)
    scores = _scores(prediction, target, valid_mask, ratios, "pairs")
    number = len(AVERAGED_RATIOS)
    found = {"boundary_{}": average(scores[:number], AVERAGED_RATIOS)}
    for ratio, score in zip(RATIOS, scores[number:], strict=True):
        found[f"boundary_{{}}_{ratio:.2f}"] = score
    return {
        name.format(kind): getattr(score, kind)
        for name, score in found.items()
        if score is not None
        for kind in KINDS
    }


def is_dense(valid_mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether nearly every valid pixel has a valid neighbour to its left or right.

    A dense map with an empty sky of any size counts as dense; a lidar scan does not.
    """
    padded = np.pad(valid_mask, ((0, 0), (1, 1)))
    beside = valid_mask & (padded[:, :-2] | padded[:, 2:])
    return bool(beside.sum() >= _DENSE * valid_mask.sum())


def _scores(
    prediction: np.ndarray,
    target: np.ndarray,
    valid_mask: np.ndarray,
    ratios: Sequence[float],
    pooling: Pooling,
) -> list[Boundary | None]:
    if not all(ratio > 1 for ratio in ratios):
        raise ValueError(f"ratios are {ratios}; each must be above 1")
    for name, depth in (("prediction", prediction), ("target", target)):
        if not ((depth > 0) & np.isfinite(depth) | ~valid_mask).all():
            raise ValueError(f"the {name} is not positive and finite at every valid pixel")
    predicted, true = (_steps(depth, valid_mask) for depth in (prediction, target))
    found = []
    for ratio in ratios:
        # by direction: contours in both, in the prediction, in the ground truth
        counts = np.array(
            [
                (np.sum((ours > ratio) & (its > ratio)), np.sum(ours > ratio), np.sum(its > ratio))
                for ours, its in zip(predicted, true, strict=True)
            ]
        )
        found.append(_score(counts if pooling == "directions" else counts.sum(0, keepdims=True)))
    return found


def _score(counts: np.ndarray) -> Boundary | None:
    both, predicted, true = counts.T
    if not true.any():
        return None
    precision, recall = (float(np.mean(both / np.maximum(n, 1))) for n in (predicted, true))
    total = precision + recall
    return Boundary(2 * precision * recall / total if total else 0.0, precision, recall)


def _steps(depth: np.ndarray, valid_mask: np.ndarray) -> list[np.ndarray]:
    """Depth ratios of all pairs of valid neighbours; one array per direction of the nearer
    pixel."""
    depth = np.where(valid_mask, depth, 1).astype(np.float64)
    steps = []
    for first, second in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
    ):
        both = valid_mask[first] & valid_mask[second]
        one, other = depth[first][both], depth[second][both]
        steps += [one / other, other / one]
    return steps
