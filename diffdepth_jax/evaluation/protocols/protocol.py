"""`Protocol`: how one prediction is scored against its ground truth."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from diffdepth_jax.data import resampling
from diffdepth_jax.errors import ConfigError, DataError, did_you_mean
from diffdepth_jax.evaluation import metrics
from diffdepth_jax.evaluation.protocols import alignment, crops, frames, transparent
from diffdepth_jax.evaluation.protocols.frames import Frame, Size
from diffdepth_jax.evaluation.protocols.score import Comparison, Score, measure

Crop = Literal["none", "garg", "eigen"]
Alignment = Literal[
    "none", "median", "median_low", "lsq_depth", "lsq_disparity", "lsq_disparity_near"
]
FitPixels = Literal["valid", "positive"]
Resize = Literal["none", "bilinear", "bilinear_half_pixel"]
FillZeros = Literal["none", "background"]
ResizeInput = Literal["none", "lanczos"]
PredictionFrame = Literal["by_size", "full", "kb", "nyu_release", "robotcar"]
Predicts = Literal["depth", "disparity"]
MetricSet = Literal["all", "kitti_benchmark", "millimetres"]
# A map [h, w], or the mean and spread of several samples.
Prediction = np.ndarray | tuple[np.ndarray, np.ndarray]
# Maps uint8 images [h, w, 3] to their predictions, in the same order.
PredictFn = Callable[[list[np.ndarray]], Sequence[Prediction]]
_NEEDS_DISPARITY = ("lsq_disparity", "lsq_disparity_near")
_LEAST_SQUARES = ("lsq_depth", *_NEEDS_DISPARITY)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """An evaluation protocol.

    Attributes:
        name: its key in `table.PROTOCOLS`.
        min_depth, max_depth: metres; ground truth is valid strictly between the two. An infinite
            max_depth means no cap.
        clip_min, clip_max: metres; range that predictions are clipped to; None for min_depth and
            max_depth. For example, Monodepth2's `eigen_benchmark` scores all ground truth pixels
            and clips predictions to 1e-3 and 80 m.
        dataset: the data set that crops refer to.
        input: the part of a full frame given to the model; see `frames.take`.
        input_size: the size that this is resized to first, if the protocol defines one.
        resize_input: `lanczos`, or `none` for no resizing.
        crop_reference: the frame that is scored and that the crop refers to: `full`, or the same as
            `input`. With `full`, a kb-cropped prediction is put back into the full frame.
        crop: the evaluation crop.
        ground_truth: the sample's `depth`, or `booster`: see `transparent`.
        predicts: what a prediction contains; None for what the alignment expects: disparity for
            `lsq_disparity`, otherwise depth. The other one is inverted first; least squares are
            then fitted on positive predictions only, as others have no inverse.
        alignment: alignment of relative predictions, fitted on the scored pixels; see `alignment`.
        fit_pixels: the scored pixels that `lsq_disparity` is fitted on: all `valid` ones, or those
            with a `positive` prediction (Marigold).
        disparity_floor: 1/metres, for `lsq_disparity`; None for 1 / clip_max (Depth Anything-AC,
            Marigold), or 1e-3 if there is no cap (MiDaS).
        prediction_frame: what a prediction shows, regardless of its size: the `full` frame or the
            same as `input`. With `by_size`, a prediction of the input's size, before or after
            `resize_input`, shows the input, any other the full frame.
        resize_prediction: `none` rejects predictions that do not have the size of what they show;
            `bilinear` resizes them to it, before any crop (align_corners=True; for Booster, with
            image borders aligned, as in OpenCV); `bilinear_half_pixel` resizes as in OpenCV under
            every protocol (Monodepth2, whose predictions are disparity).
        fill_zeros: `background` fills pixels without a prediction, which are 0, as in the KITTI
            devkit, see `frames.fill_background`; `none` treats them as depth 0.
        metric_set: which metrics; a key of `metrics.SETS`.
        classes: whether transparent and mirror objects are also scored separately.
        conditions: groups of images that are also averaged separately: those whose condition
            contains the group's name, so that `night` includes night-rain (as in md4all). If empty,
            every condition that occurs is a group.
        boundary: also measure occluding contours, see `evaluation.boundary`; needs dense, exact
            ground truth. Does not affect other results.
    """

    name: str
    min_depth: float
    max_depth: float = math.inf
    clip_min: float | None = None
    clip_max: float | None = None
    dataset: Literal["any", "kitti", "nyu"] = "any"
    input: Frame = "full"
    input_size: Size | None = None
    resize_input: ResizeInput = "none"
    crop_reference: Frame = "full"
    crop: Crop = "none"
    ground_truth: Literal["depth", "booster"] = "depth"
    predicts: Predicts | None = None
    alignment: Alignment = "none"
    fit_pixels: FitPixels = "valid"
    disparity_floor: float | None = None
    prediction_frame: PredictionFrame = "by_size"
    resize_prediction: Resize = "none"
    fill_zeros: FillZeros = "none"
    metric_set: MetricSet = "all"
    classes: bool = False
    conditions: tuple[str, ...] = ()
    boundary: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.min_depth < self.max_depth:
            raise ConfigError(
                f"protocol {self.name}: the range {self.min_depth}..{self.max_depth} m must be "
                "positive and increasing"
            )
        if not 0 < self._clip[0] < self._clip[1]:
            raise ConfigError(
                f"protocol {self.name}: predictions are clipped to {self._clip[0]}.."
                f"{self._clip[1]} m (clip_min, clip_max), which must be positive and increasing"
            )
        if self.fit_pixels != "valid" and self.alignment != "lsq_disparity":
            raise ConfigError(
                f"protocol {self.name}: fit_pixels needs alignment=lsq_disparity, not "
                f"{self.alignment}"
            )
        if self.fill_zeros != "none" and self._predicts != "depth":
            raise ConfigError(
                f"protocol {self.name}: fill_zeros needs predictions of depth (predicts=depth)"
            )
        if self.disparity_floor is not None and not self.disparity_floor > 0:
            raise ConfigError(
                f"protocol {self.name}: disparity_floor is {self.disparity_floor}; it must be "
                "above 0"
            )
        if self.disparity_floor is not None and self.alignment != "lsq_disparity":
            raise ConfigError(
                f"protocol {self.name}: disparity_floor needs alignment=lsq_disparity, not "
                f"{self.alignment}"
            )
        references = ("full",) if self.input == "full" else (self.input, "full")
        if self.input in ("nyu_release", "robotcar"):  # not invertible
            references = (self.input,)
        for option, known in {
            "crop": crops.CROPS[self.dataset],
            "crop_reference": references,
            "resize_input": typing.get_args(ResizeInput) if self.input_size else ("none",),
            "predicts": (None, *typing.get_args(Predicts)),
            "alignment": typing.get_args(Alignment),
            "fit_pixels": typing.get_args(FitPixels),
            "prediction_frame": tuple(dict.fromkeys(("by_size", "full", self.input))),
            "resize_prediction": typing.get_args(Resize),
            "fill_zeros": typing.get_args(FillZeros),
            "metric_set": typing.get_args(MetricSet),
        }.items():
            value = getattr(self, option)
            if value not in known:
                raise ConfigError(
                    f"protocol {self.name}: {option} is {value!r}; it must be one of "
                    f"{', '.join(map(str, known))}"
                )

    def with_options(self, **options: Any) -> "Protocol":
        """The protocol with some options replaced; options that are None keep their values.

        Raises:
            ConfigError: for an unknown option or an invalid value.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name in given:
            known = (*OPTIONS, *MEASURING)
            if name not in known:
                raise ConfigError(f"protocols have no option {name!r}{did_you_mean(name, known)}")
        return dataclasses.replace(self, **given)

    def unaligned(self) -> "Protocol":
        """The protocol for metric depth maps of the full frame, such as the baseline."""
        return dataclasses.replace(
            self,
            alignment="none",
            fit_pixels="valid",
            disparity_floor=None,
            predicts="depth",
            prediction_frame="full",
            resize_prediction="none",
            fill_zeros="none",
        )

    @property
    def options(self) -> dict[str, Any]:
        """All options by name, JSON-compatible; None if an option is off, for example no cap."""
        options = {name: getattr(self, name) for name in OPTIONS}
        options["max_depth"] = self.max_depth if math.isfinite(self.max_depth) else None
        for name, off in (("fit_pixels", "valid"), ("fill_zeros", "none"), ("clip_max", math.inf)):
            options[name] = None if options[name] == off else options[name]
        options["disparity_floor"] = self._floor if self.alignment == "lsq_disparity" else None
        options["predicts"] = self._predicts
        size = None
        if self.resize_input != "none" and self.input_size is not None:
            size = frames.show(self.input_size)
        return {"input": self.input, "input_size": size, **options}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, headline metric first, without additional measures."""
        return metrics.SETS[self.metric_set]

    @property
    def measuring(self) -> tuple[str, ...]:
        """The options of `MEASURING` that are on."""
        return tuple(name for name in MEASURING if getattr(self, name))

    @property
    def _predicts(self) -> Predicts:
        return self.predicts or ("disparity" if self.alignment in _NEEDS_DISPARITY else "depth")

    @property
    def _floor(self) -> float:
        if self.disparity_floor is not None:
            return self.disparity_floor
        farthest = self._clip[1]
        return 1 / farthest if math.isfinite(farthest) else 1e-3

    @property
    def _clip(self) -> tuple[float, float]:
        low = self.min_depth if self.clip_min is None else self.clip_min
        return low, self.max_depth if self.clip_max is None else self.clip_max

    @property
    def input_key(self) -> tuple[Frame, Size | None]:
        """What `prepare` depends on; protocols that agree in this share predictions."""
        return self.input, self.input_size if self.resize_input != "none" else None

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The part of a uint8 image [h, w, 3] that is given to the model.

        Raises:
            DataError: if the image is smaller than the crop.
        """
        frame, size = self.input_key
        image = frames.take(image, frame)
        return image if size is None else frames.resize_image(image, size)

    def scored_part(self, image: np.ndarray) -> np.ndarray:
        """The part of an image [h, w, 3] that is scored: it shows what `compare` returns."""
        image = frames.take(image, self.crop_reference)
        return image[crops.crop_box(self.dataset, self.crop, image.shape[:2])]

    def predict(
        self, predict_fn: PredictFn | None, samples: Sequence[Mapping[str, Any]]
    ) -> Sequence[Prediction]:
        """The predictions to score: the samples' own, or the model's for the prepared images.

        Raises:
            DataError: naming the image, if it is smaller than the crop.
        """
        if all("prediction" in sample for sample in samples):
            return [sample["prediction"] for sample in samples]
        images = []
        for sample in samples:
            with naming_image(sample["id"]):
                images.append(self.prepare(sample["image"]))
        if predict_fn is None:
            raise TypeError("samples without predictions need predict_fn")
        return predict_fn(images)

    def score(self, prediction: Prediction, depth: np.ndarray) -> Score:
        """`score_sample` for ground truth that is just a depth map."""
        return self.score_sample(prediction, {"depth": depth})

    def score_sample(self, prediction: Prediction, sample: Mapping[str, Any]) -> Score:
        """Scores one prediction; arguments and errors as in `compare`."""
        comparison = self.compare(prediction, sample)
        if comparison is None:
            return Score(0, 0, 0, math.nan, {})
        prediction, target = comparison.prediction, comparison.target
        valid_mask = comparison.valid_mask
        found = metrics.compute(prediction, target, valid_mask, self.metrics)
        measured, curves = measure(comparison, self.boundary)
        return Score(
            num_valid=int(valid_mask.sum()),
            num_nonfinite=comparison.num_nonfinite,
            num_clipped=comparison.num_clipped,
            num_zero=comparison.num_zero,
            mean_depth=float(target[valid_mask].mean(dtype=np.float64)),
            metrics=found | measured,
            curves=curves,
            classes={
                name: metrics.compute(prediction, target, mask, self.metrics)
                for name, mask in comparison.classes.items()
                if mask.any()
            },
        )

    def compare(self, prediction: Prediction, sample: Mapping[str, Any]) -> Comparison | None:
        """Converts a prediction and its ground truth to the protocol's frame, range and scale.

        Args:
            prediction: float [h, w], metres (relative depth or disparity with an alignment), with
                the size of the ground truth or of the model's input, or any size with
                `resize_prediction`. A spread of depth samples is transformed too: a fitted scale
                keeps its ratio to depth.
            sample: has `depth` float [h, w], ground truth of the full frame in metres, 0 or NaN
                where unmeasured; for Booster and classes see `transparent`.

        Returns:
            None if no pixel is valid.

        Raises:
            DataError: if sizes do not match (gives both), a prediction cannot be aligned, or the
                sample lacks a field.
        """
        prediction, spread = prediction if isinstance(prediction, tuple) else (prediction, None)
        depth, classes = self.truth(sample)
        num_zero = int((prediction == 0).sum()) if self._predicts == "depth" else 0
        if self.fill_zeros == "background":
            prediction = frames.fill_background(prediction)
        prediction = self._place(prediction, depth.shape)
        target = frames.take_depth(depth, self.crop_reference)
        box = crops.crop_box(self.dataset, self.crop, target.shape)
        prediction, target = prediction[box], target[box]
        valid_mask = metrics.valid_pixels(target, self.min_depth, self.max_depth)
        if not valid_mask.any():
            return None
        nonfinite = ~np.isfinite(prediction[valid_mask])
        aligned = self._align(prediction, target, valid_mask)
        clipped = metrics.clip(aligned, *self._clip)
        changed = aligned[valid_mask] != clipped[valid_mask]
        if spread is not None:
            spread = self._place(spread, depth.shape)[box]
            if self.alignment != "none":
                scale = np.divide(
                    aligned, prediction, where=prediction > 0, out=np.ones_like(aligned)
                )
                spread = spread * np.abs(scale)
        return Comparison(
            clipped,
            target,
            valid_mask,
            num_nonfinite=int(nonfinite.sum()),
            num_clipped=int((changed & ~nonfinite).sum()),
            num_zero=num_zero,
            classes={name: mask[box] & valid_mask for name, mask in classes.items()},
            spread=spread,
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
        fitted = valid_mask
        if (self._predicts == "disparity") != (self.alignment in _NEEDS_DISPARITY):
            # 0 has no inverse: `inverse` turns it into a huge value, which a median bears, but a
            # single one of which would decide a least-squares fit. A map without positive
            # predictions is still a constant, aligned to the mean.
            positive = valid_mask & (prediction > 0)
            enough = positive.sum() >= 2 or self.fit_pixels == "positive"
            if self.alignment in _LEAST_SQUARES and enough:
                fitted = positive
            prediction = alignment.inverse(prediction)
        extra = {}
        if self.alignment == "lsq_disparity":
            extra = {"floor": self._floor, "positive_only": self.fit_pixels == "positive"}
        return alignment.METHODS[self.alignment](prediction, target, fitted, **extra)

    def _place(self, prediction: np.ndarray, full: Size) -> np.ndarray:
        """A prediction in the scored frame."""
        size_of_input = frames.frame_size(self.input, full)
        input_shape = self.input_key[1] or size_of_input
        shown = self.prediction_frame
        if shown == "by_size":
            known = (input_shape, size_of_input)
            shown = self.input if prediction.shape in known else "full"
        size = size_of_input if shown == self.input else full
        if prediction.shape != size:
            if self.resize_prediction == "none":
                sizes = [full, size_of_input] if self.prediction_frame == "by_size" else [size]
                accepted = " or ".join(dict.fromkeys(map(frames.show, sizes)))
                raise DataError(
                    f"the prediction is {frames.show(prediction.shape)} and the ground truth "
                    f"{frames.show(full)}; protocol {self.name} needs predictions of {accepted}, "
                    "or resize_prediction=bilinear"
                )
            half_pixel = self.resize_prediction == "bilinear_half_pixel"
            corners = self.ground_truth != "booster" and not half_pixel
            prediction = resampling.resize(prediction, size, "bilinear", align_corners=corners)
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
    "clip_min",
    "clip_max",
    "predicts",
    "alignment",
    "fit_pixels",
    "disparity_floor",
    "prediction_frame",
    "resize_prediction",
    "fill_zeros",
    "metric_set",
)
# Options that add measures without affecting other results.
MEASURING = ("boundary",)


@contextlib.contextmanager
def naming_image(name: str) -> Iterator[None]:
    """Adds the image's id to a DataError raised in the context."""
    try:
        yield
    except DataError as error:
        raise DataError(f"image {name!r}: {error}") from error
