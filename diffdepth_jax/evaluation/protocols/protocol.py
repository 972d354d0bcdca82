"""`Protocol`: how one prediction is scored against its ground truth."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from diffdepth_jax.errors import DataError
from diffdepth_jax.evaluation import metrics
from diffdepth_jax.evaluation.protocols import alignment, crops, frames, transparent
from diffdepth_jax.evaluation.protocols.frames import Frame, Size
from diffdepth_jax.evaluation.report.papers import Reported

Crop = Literal["none", "garg", "eigen"]
Alignment = Literal[
    "none", "median", "median_low", "lsq_depth", "lsq_disparity", "lsq_disparity_near"
]
Resize = Literal["none", "bilinear"]
ResizeInput = Literal["none", "lanczos"]
PredictionFrame = Literal["by_size", "full", "kb", "nyu_release", "robotcar"]
Predicts = Literal["depth", "disparity"]
MetricSet = Literal["all", "kitti_benchmark", "millimetres"]
# Images uint8 [h, w, 3] to depth [h, w] of each, in the same order.
PredictFn = Callable[[list[np.ndarray]], Sequence[np.ndarray]]
_NEEDS_DISPARITY = ("lsq_disparity", "lsq_disparity_near")


@dataclasses.dataclass(frozen=True)
class Score:
    """One image's result.

    Attributes:
      num_valid: pixels that count.
      num_nonfinite: how many of them were predicted as NaN or infinite.
      num_clipped: how many more lay outside the protocol's range and were clipped to it.
      mean_depth: of the ground truth over the pixels that count, metres; NaN where none does.
      metrics: the protocol's; empty where no pixel counts.
      classes: the same over the pixels of each class that the image has, where the protocol
        distinguishes classes.
    """

    num_valid: int
    num_nonfinite: int
    num_clipped: int
    mean_depth: float
    metrics: Mapping[str, float]
    classes: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A prediction and its ground truth as they are compared, all [h, w] of the scored frame.

    Attributes:
      prediction: float64, metres, aligned and clipped.
      target: metres.
      valid_mask: the pixels that count.
      num_nonfinite, num_clipped: as in `Score`.
      classes: the pixels of each class, of those that count.
    """

    prediction: np.ndarray
    target: np.ndarray
    valid_mask: np.ndarray
    num_nonfinite: int
    num_clipped: int
    classes: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to evaluate.

    Attributes:
      name: its key in `table.PROTOCOLS`.
      min_depth, max_depth: metres; ground truth counts strictly between, predictions are clipped to
        them. An infinite max_depth is no cap.
      dataset: whose crops are meant.
      input: what of a full frame the model is fed; see `frames.take`.
      input_size: the size that this is resized to before, where the protocol has one.
      resize_input: `lanczos`, or `none` to feed it as it is.
      crop_reference: the frame that is scored and that the crop refers to: `full`, or the same as
        `input`. With `full`, a kb-cropped prediction is put back into the full frame.
      crop: the evaluation crop.
      ground_truth: the sample's `depth`, or `booster`: see `transparent`.
      predicts: what a prediction is; None for what the alignment works on, disparity for
        `lsq_disparity` and depth otherwise. The other one is inverted first.
      alignment: of relative predictions, fitted on the pixels that count; see `alignment`.
      disparity_floor: 1/metres, for `lsq_disparity`; 1 / max_depth when None (Depth Anything-AC,
        Marigold), or 1e-3 where there is no cap (MiDaS).
      prediction_frame: what a prediction shows, whatever its size: the `full` frame or the same as
        `input`. `by_size` takes one of the size that was fed for the input, any other for the full
        frame.
      resize_prediction: `none` refuses a prediction that has not the size of what it shows;
        `bilinear` resizes it to that, before any crop (align_corners=True; Booster's with image
        borders on image borders, as OpenCV does).
      metric_set: which metrics; a key of `metrics.SETS`.
      classes: whether the pixels of transparent and mirroring objects are scored apart too.
      conditions: groups of images to average apart too: those whose condition contains the group's
        name, so that `night` includes night-rain (md4all's rule). Where empty, every condition that
        occurs is a group.
      reported: numbers of others under this protocol.
    """

    name: str
    min_depth: float
    max_depth: float = math.inf
    dataset: Literal["any", "kitti", "nyu"] = "any"
    input: Frame = "full"
    input_size: Size | None = None
    resize_input: ResizeInput = "none"
    crop_reference: Frame = "full"
    crop: Crop = "none"
    ground_truth: Literal["depth", "booster"] = "depth"
    predicts: Predicts | None = None
    alignment: Alignment = "none"
    disparity_floor: float | None = None
    prediction_frame: PredictionFrame = "by_size"
    resize_prediction: Resize = "none"
    metric_set: MetricSet = "all"
    classes: bool = False
    conditions: tuple[str, ...] = ()
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
        references = ("full",) if self.input == "full" else (self.input, "full")
        if self.input in ("nyu_release", "robotcar"):  # There is no way back.
            references = (self.input,)
        for option, known in {
            "crop": crops.CROPS[self.dataset],
            "crop_reference": references,
            "resize_input": typing.get_args(ResizeInput) if self.input_size else ("none",),
            "predicts": (None, *typing.get_args(Predicts)),
            "alignment": typing.get_args(Alignment),
            "prediction_frame": tuple(dict.fromkeys(("by_size", "full", self.input))),
            "resize_prediction": typing.get_args(Resize),
            "metric_set": typing.get_args(MetricSet),
        }.items():
            value = getattr(self, option)
            if value not in known:
                raise ValueError(
                    f"protocol {self.name}: {option} is {value!r}; it must be one of "
                    f"{', '.join(map(str, known))}"
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

    def unaligned(self) -> "Protocol":
        """The same for a metric depth map of the full frame, such as the baseline's."""
        return dataclasses.replace(
            self,
            alignment="none",
            disparity_floor=None,
            predicts="depth",
            prediction_frame="full",
            resize_prediction="none",
        )

    @property
    def options(self) -> dict[str, Any]:
        """Every option by name, ready for JSON: no cap is None."""
        options = {name: getattr(self, name) for name in OPTIONS}
        options["max_depth"] = self.max_depth if math.isfinite(self.max_depth) else None
        options["disparity_floor"] = self._floor if self.alignment == "lsq_disparity" else None
        options["predicts"] = self._predicts
        size = None if self.resize_input == "none" else frames.show(self.input_size)
        return {"input": self.input, "input_size": size, **options}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the first one being the headline."""
        return metrics.SETS[self.metric_set]

    @property
    def _predicts(self) -> Predicts:
        return self.predicts or ("disparity" if self.alignment in _NEEDS_DISPARITY else "depth")

    @property
    def _floor(self) -> float:
        if self.disparity_floor is not None:
            return self.disparity_floor
        return 1 / self.max_depth if math.isfinite(self.max_depth) else 1e-3

    @property
    def fed(self) -> tuple[Frame, Size | None]:
        """What `prepare` depends on: protocols that agree in this share their predictions."""
        return self.input, self.input_size if self.resize_input != "none" else None

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """What the model is fed of an image uint8 [h, w, 3].

        Raises:
          ValueError: if the image is smaller than the crop.
        """
        frame, size = self.fed
        image = frames.take(image, frame)
        return image if size is None else frames.resize_image(image, size)

    def predict(
        self, predict_fn: PredictFn | None, samples: Sequence[Mapping[str, Any]]
    ) -> list[np.ndarray]:
        """The predictions to score: the samples' own, or those of what the model is fed.

        Raises:
          DataError: naming the image, if it is smaller than the crop.
        """
        if all("prediction" in sample for sample in samples):
            return [sample["prediction"] for sample in samples]
        images = []
        for sample in samples:
            with naming_image(sample["id"]):
                images.append(self.prepare(sample["image"]))
        return predict_fn(images)

    def score(self, prediction: np.ndarray, depth: np.ndarray) -> Score:
        """`score_sample` with a ground truth that is a depth map alone."""
        return self.score_sample(prediction, {"depth": depth})

    def score_sample(self, prediction: np.ndarray, sample: Mapping[str, Any]) -> Score:
        """Scores one prediction; arguments and errors as for `compare`."""
        comparison = self.compare(prediction, sample)
        if comparison is None:
            return Score(0, 0, 0, math.nan, {})
        prediction, target = comparison.prediction, comparison.target
        valid_mask = comparison.valid_mask
        return Score(
            num_valid=int(valid_mask.sum()),
            num_nonfinite=comparison.num_nonfinite,
            num_clipped=comparison.num_clipped,
            mean_depth=float(target[valid_mask].mean(dtype=np.float64)),
            metrics=metrics.compute(prediction, target, valid_mask, self.metrics),
            classes={
                name: metrics.compute(prediction, target, mask, self.metrics)
                for name, mask in comparison.classes.items()
                if mask.any()
            },
        )

    def compare(self, prediction: np.ndarray, sample: Mapping[str, Any]) -> Comparison | None:
        """Brings a prediction and its ground truth to the frame, range and scale of the protocol.

        Args:
          prediction: float [h, w], metres (relative depth or disparity under an alignment): at the
            ground truth's size or at that of the model's input, or any under `resize_prediction`.
          sample: with `depth` float [h, w], the ground truth's full frame in metres, 0 or NaN
            without a measurement; for Booster and for classes see `transparent`.

        Returns:
          None where no pixel counts.

        Raises:
          ValueError: for sizes that do not go together (both are named), a prediction that cannot
            be aligned, or a sample that lacks something.
        """
        depth, classes = self.truth(sample)
        prediction = self._place(prediction, depth.shape)
        target = frames.take_depth(depth, self.crop_reference)
        box = crops.crop_box(self.dataset, self.crop, target.shape)
        prediction, target = prediction[box], target[box]
        valid_mask = metrics.valid_pixels(target, self.min_depth, self.max_depth)
        if not valid_mask.any():
            return None
        nonfinite = ~np.isfinite(prediction[valid_mask])
        aligned = self._align(prediction, target, valid_mask)
        clipped = metrics.clip(aligned, self.min_depth, self.max_depth)
        changed = aligned[valid_mask] != clipped[valid_mask]
        return Comparison(
            clipped,
            target,
            valid_mask,
            num_nonfinite=int(nonfinite.sum()),
            num_clipped=int((changed & ~nonfinite).sum()),
            classes={name: mask[box] & valid_mask for name, mask in classes.items()},
        )

    def truth(self, sample: Mapping[str, Any]) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """The full frame's depth [h, w], metres, and the pixels of each class, bool [h, w]."""
        classes = transparent.class_masks(sample) if self.classes else {}
        if self.ground_truth == "depth":
            return sample["depth"], classes
        quarters = {name: frames.quarter(mask) for name, mask in classes.items()}
        return transparent.booster_depth(sample), quarters

    def _align(
        self, prediction: np.ndarray, target: np.ndarray, valid_mask: np.ndarray
    ) -> np.ndarray:
        if (self._predicts == "disparity") != (self.alignment in _NEEDS_DISPARITY):
            prediction = alignment.inverse(prediction)
        extra = {"floor": self._floor} if self.alignment == "lsq_disparity" else {}
        return alignment.METHODS[self.alignment](prediction, target, valid_mask, **extra)

    def _place(self, prediction: np.ndarray, full: Size) -> np.ndarray:
        """A prediction in the frame that is scored."""
        size_of_input = frames.frame_size(self.input, full)
        fed = self.fed[1] or size_of_input
        shown = self.prediction_frame
        if shown == "by_size":
            shown = self.input if prediction.shape == fed else "full"
        size = size_of_input if shown == self.input else full
        if prediction.shape != size:
            if self.resize_prediction == "none":
                accepted = (full, size_of_input) if self.prediction_frame == "by_size" else (size,)
                accepted = " or ".join(dict.fromkeys(map(frames.show, accepted)))
                raise DataError(
                    f"the prediction is {frames.show(prediction.shape)} and the ground truth "
                    f"{frames.show(full)}; protocol {self.name} takes predictions of {accepted}, "
                    "others with resize_prediction=bilinear"
                )
            corners = self.ground_truth != "booster"
            prediction = frames.resize_bilinear(prediction, size, align_corners=corners)
        if shown == self.crop_reference:
            return prediction
        if shown == "full":
            return frames.take(prediction, self.crop_reference)
        return frames.put_back(prediction, full)


OPTIONS = (
    "resize_input",
    "crop",
    "crop_reference",
    "min_depth",
    "max_depth",
    "predicts",
    "alignment",
    "disparity_floor",
    "prediction_frame",
    "resize_prediction",
    "metric_set",
)


@contextlib.contextmanager
def naming_image(name: str) -> Iterator[None]:
    """Adds the image's id to a DataError raised inside."""
    try:
        yield
    except DataError as error:
        raise DataError(f"image {name!r}: {error}") from error
