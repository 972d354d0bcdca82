"""Evaluation protocols: what the model is fed, which pixels count, and how predictions are treated.

A protocol is the whole way between an image file and a metric. Where public evaluation code
disagrees (the frame that a crop's fractions refer to, the cap, the alignment), the disagreement is
an option with a name, and `Protocol.options` prints every one beside the result.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from diffdepth_jax.evaluation import alignment, frames, metrics
from diffdepth_jax.evaluation.frames import Frame, Size

Crop = Literal["none", "garg", "eigen"]
Alignment = Literal["none", "median", "lsq_depth", "lsq_disparity"]
Resize = Literal["none", "bilinear"]
PredictionFrame = Literal["by_size", "full", "kb", "nyu_release"]


@dataclasses.dataclass(frozen=True)
class Reported:
    """Numbers that somebody else reported, to print beside ours and never to claim.

    Attributes:
      label: a word for the column.
      source: where they stand, and of which data.
      options: the options under which they hold, as far as stated; under others they are not
        comparable and are left out.
      metrics: named as ours.
    """

    label: str
    source: str
    options: Mapping[str, Any]
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Score:
    """One image's result.

    Attributes:
      num_valid: pixels that count.
      num_nonfinite: how many of them were predicted as NaN or infinite.
      num_clipped: how many more lay outside the protocol's range and were clipped to it.
      mean_depth: of the ground truth over the pixels that count, metres; NaN where none does.
      metrics: as `metrics.compute`; empty where no pixel counts.
    """

    num_valid: int
    num_nonfinite: int
    num_clipped: int
    mean_depth: float
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to evaluate.

    Attributes:
      name: its key in `PROTOCOLS`.
      min_depth, max_depth: metres; ground truth counts strictly between, predictions are clipped to
        them. An infinite max_depth is no cap.
      dataset: whose crops are meant.
      input: what of a full frame the model is fed; see `frames.take`.
      crop_reference: the frame that is scored and that the crop refers to: `full`, or the same as
        `input`. With `full`, a kb-cropped prediction is put back into the full frame.
      crop: the evaluation crop.
      alignment: of relative predictions, fitted on the pixels that count; see `alignment`.
      disparity_floor: 1/metres, for `lsq_disparity`; 1 / max_depth when None (Depth Anything-AC,
        Marigold), or 1e-3 where there is no cap (MiDaS).
      prediction_frame: what a prediction shows, whatever its size: the `full` frame or the same as
        `input`. `by_size` takes one of the input's size for the input, any other for the full one.
      resize_prediction: `none` refuses a prediction that has not the size of what it shows;
        `bilinear` resizes it to that (align_corners=True), before any crop.
      reported: numbers of others under this protocol.
    """

    name: str
    min_depth: float
    max_depth: float = math.inf
    dataset: Literal["any", "kitti", "nyu"] = "any"
    input: Frame = "full"
    crop_reference: Frame = "full"
    crop: Crop = "none"
    alignment: Alignment = "none"
    disparity_floor: float | None = None
    prediction_frame: PredictionFrame = "by_size"
    resize_prediction: Resize = "none"
    reported: tuple[Reported, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(
                f"protocol {self.name}: the range {self.min_depth}..{self.max_depth} m must be "
                "positive and increasing"
            )
        if self.disparity_floor is not None and not self.disparity_floor > 0:
            raise ValueError(
                f"protocol {self.name}: disparity_floor is {self.disparity_floor}; it must be > 0"
            )
        if self.disparity_floor is not None and self.alignment != "lsq_disparity":
            raise ValueError(
                f"protocol {self.name}: disparity_floor goes with alignment=lsq_disparity, not "
                f"{self.alignment}"
            )
        references = {"full": ("full",), "kb": ("kb", "full"), "nyu_release": ("nyu_release",)}
        for option, known in {
            "crop": frames.CROPS[self.dataset],
            "crop_reference": references[self.input],
            "alignment": typing.get_args(Alignment),
            "prediction_frame": tuple(dict.fromkeys(("by_size", "full", self.input))),
            "resize_prediction": typing.get_args(Resize),
        }.items():
            value = getattr(self, option)
            if value not in known:
                raise ValueError(
                    f"protocol {self.name}: {option} is {value!r}; it must be one of "
                    f"{', '.join(known)}"
                )

    def with_options(self, **options: Any) -> "Protocol":
        """The same protocol with other options; an option that is None stays as it is.

        Raises:
          ValueError: for an option that protocols do not have, or a value that it cannot have.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name in given:
            if name not in OPTIONS:
                raise ValueError(f"protocols have no option {name!r} (known: {', '.join(OPTIONS)})")
        return dataclasses.replace(self, **given)

    @property
    def options(self) -> dict[str, Any]:
        """Every option by name, ready for JSON: no cap is None."""
        options = {name: getattr(self, name) for name in OPTIONS}
        options["max_depth"] = self.max_depth if math.isfinite(self.max_depth) else None
        options["disparity_floor"] = self._floor if self.alignment == "lsq_disparity" else None
        return {"input": self.input, **options}

    def comparable(self, options: Mapping[str, Any]) -> list[Reported]:
        """The reported numbers that hold under these options."""
        return [
            reported
            for reported in self.reported
            if all(options.get(name) == value for name, value in reported.options.items())
        ]

    @property
    def _floor(self) -> float:
        if self.disparity_floor is not None:
            return self.disparity_floor
        return 1 / self.max_depth if math.isfinite(self.max_depth) else 1e-3

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """What the model is fed of an image uint8 [h, w, 3].

        Raises:
          ValueError: if the image is smaller than the crop.
        """
        return frames.take(image, self.input)

    def score(self, prediction: np.ndarray, depth: np.ndarray) -> Score:
        """Scores one prediction.

        Args:
          prediction: float [h, w], metres (relative depth or disparity under an alignment): at the
            ground truth's size or at that of the model's input, or any under `resize_prediction`.
          depth: float [h, w], the ground truth's full frame in metres, 0 or NaN without a
            measurement.

        Raises:
          ValueError: for sizes that do not go together (both are named), or a prediction that
            cannot be aligned.
        """
        prediction = self._place(prediction, depth.shape)
        target = frames.take_depth(depth, self.crop_reference)
        box = frames.crop_box(self.dataset, self.crop, target.shape)
        prediction, target = prediction[box], target[box]
        valid_mask = metrics.valid_pixels(target, self.min_depth, self.max_depth)
        num_valid = int(valid_mask.sum())
        if num_valid == 0:
            return Score(0, 0, 0, math.nan, {})

        extra = {"floor": self._floor} if self.alignment == "lsq_disparity" else {}
        align = alignment.METHODS[self.alignment]
        aligned = align(prediction, target, valid_mask, **extra)
        clipped = metrics.clip(aligned, self.min_depth, self.max_depth)
        nonfinite = ~np.isfinite(prediction[valid_mask])
        changed = aligned[valid_mask] != clipped[valid_mask]
        return Score(
            num_valid,
            num_nonfinite=int(nonfinite.sum()),
            num_clipped=int((changed & ~nonfinite).sum()),
            mean_depth=float(target[valid_mask].mean(dtype=np.float64)),
            metrics=metrics.compute(clipped, target, valid_mask),
        )

    def _place(self, prediction: np.ndarray, full: Size) -> np.ndarray:
        """A prediction in the frame that is scored."""
        fed = frames.frame_size(self.input, full)
        shown = self.prediction_frame
        if shown == "by_size":
            shown = self.input if prediction.shape == fed else "full"
        size = frames.frame_size(shown, full)
        if prediction.shape != size:
            if self.resize_prediction == "none":
                accepted = (full, fed) if self.prediction_frame == "by_size" else (size,)
                accepted = " or ".join(dict.fromkeys(map(frames.show, accepted)))
                raise ValueError(
                    f"the prediction is {frames.show(prediction.shape)} and the ground truth "
                    f"{frames.show(full)}; protocol {self.name} takes predictions of {accepted}, "
                    "others with resize_prediction=bilinear"
                )
            prediction = frames.resize_bilinear(prediction, size)
        if shown == self.crop_reference:
            return prediction
        if shown == "full":
            return frames.take(prediction, self.crop_reference)
        return frames.put_back(prediction, full)


OPTIONS = (
    "crop",
    "crop_reference",
    "min_depth",
    "max_depth",
    "alignment",
    "disparity_floor",
    "prediction_frame",
    "resize_prediction",
)

_PAPER = "DiffusionDepth paper (Duan et al. 2023)"
_README = "DiffusionDepth README, Swin on KITTI's depth-prediction split"
_NYU_PAPER = Reported("paper", f"{_PAPER}, NYUv2", {}, {"abs_rel": 0.085, "rmse": 0.295})

# KITTI's Eigen test images with improved ground truth: 652 of the 697 in the list.
_KITTI_EIGEN = Protocol(
    name="kitti_eigen",
    min_depth=1e-3,
    max_depth=80.0,
    dataset="kitti",
    input="kb",
    crop_reference="kb",
    crop="garg",
    reported=(
        Reported(
            "paper",
            f"{_PAPER}, KITTI Eigen 0-80 m",
            {"max_depth": 80.0},
            {"abs_rel": 0.050, "rmse": 2.016, "delta1": 0.977},
        ),
    ),
)

PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _KITTI_EIGEN,
        dataclasses.replace(_KITTI_EIGEN, name="kitti_eigen_50m", max_depth=50.0, reported=()),
        # val_selection_cropped, 1000 images of 352x1216; the devkit's mask is ground-truth
        # validity alone (16-bit files hold nothing below 1/256 m), so there is no cap.
        Protocol(
            name="kitti_official",
            min_depth=1e-3,
            dataset="kitti",
            reported=(
                Reported(
                    "paper",
                    f"{_PAPER}, KITTI official 0-50 m",
                    {"max_depth": 50.0},
                    {"abs_rel": 0.041, "rmse": 1.418},
                ),
            ),
        ),
        Protocol(
            name="nyu",
            min_depth=1e-3,
            max_depth=10.0,
            dataset="nyu",
            crop="eigen",
            reported=(_NYU_PAPER,),
        ),
        # Whole frames of depth that is known everywhere, such as rendered ones; nobody else's.
        Protocol(name="dense", min_depth=1e-3, max_depth=80.0),
        # What the release of DiffusionDepth computes on NYU: 240 rows, the middle 228x304, every
        # pixel above 1e-4 m.
        Protocol(
            name="nyu_release",
            min_depth=1e-4,
            input="nyu_release",
            crop_reference="nyu_release",
            reported=(_NYU_PAPER,),
        ),
        # The release's own metric: every pixel above 1e-4 m of the whole frame.
        Protocol(
            name="release",
            min_depth=1e-4,
            reported=(
                Reported(
                    "README",
                    _README,
                    {"min_depth": 1e-4, "max_depth": None, "alignment": "none", "crop": "none"},
                    {"abs_rel": 0.021, "rmse": 0.98},
                ),
            ),
        ),
    )
}


def get(name: str, **options: Any) -> Protocol:
    """The protocol `name`, with the options that are not None.

    Raises:
      ValueError: if there is no such protocol, option or value of an option.
    """
    if name not in PROTOCOLS:
        close = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no protocol {name!r}{hint} (known: {', '.join(PROTOCOLS)})")
    return PROTOCOLS[name].with_options(**options)
