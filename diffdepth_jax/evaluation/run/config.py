"""The fields of `config.evaluation`."""

import dataclasses
import typing

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.protocols import Predicts, Protocol
from diffdepth_jax.typing import FlipAverage


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The fields of `config.evaluation`; for options that are None, the protocol's value is used.

    Attributes:
        protocol: a key of `protocols.PROTOCOLS`, or a comma-separated list of them, evaluated in
            one pass over the images; options apply to all of them.
        resize_input, crop, crop_reference, min_depth, max_depth, clip_min, clip_max, predicts,
            alignment, fit_pixels, disparity_floor, metric_set: as in `protocols.Protocol`;
            max_depth=inf removes a cap.
        boundary: also measure the sharpness of depth edges (`evaluation.boundary`), for dense,
            exact ground truth such as rendered depth; does not affect other results.
        flip_tta: average each prediction with that of the mirrored image; None to do as the
            network's publication does.
        flip_average: average `depth`, or `inverse_depth` with ramps at the borders, which is
            md4all's `_pp`; see `DepthModel.predict`.
        batch_size: images predicted at once; does not affect results.
        num_inference_steps: denoising steps, for networks that denoise; None for the model's own
            number.
        num_samples: score the mean of this many samples (at least 2) of a network that uses noise,
            and measure whether their spread predicts the error (`evaluation.uncertainty`); None for
            a single prediction.
        every_steps: steps between evaluations during training; None to only evaluate at the end.
        compare: other results to show next to these; maps names to a `metrics.json` or its
            directory.
    """

    protocol: str = "kitti_eigen"
    resize_input: str | None = None
    crop: str | None = None
    crop_reference: str | None = None
    min_depth: float | None = None
    max_depth: float | None = None
    clip_min: float | None = None
    clip_max: float | None = None
    predicts: Predicts | None = None
    alignment: str | None = None
    fit_pixels: str | None = None
    disparity_floor: float | None = None
    metric_set: str | None = None
    boundary: bool = False
    flip_tta: bool | None = None
    flip_average: str = "depth"
    batch_size: int = 1
    num_inference_steps: int | None = None
    num_samples: int | None = None
    every_steps: int | None = None
    compare: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.build_all()
        except ConfigError as error:  # so that `config.from_mapping` names the field
            raise ValueError(str(error)) from error
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"every_steps is {self.every_steps}; it must be at least 1 or None")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.num_samples is not None and self.num_samples < 2:
            raise ValueError(
                f"num_samples is {self.num_samples}; it must be at least 2, or None for a single "
                "prediction"
            )
        if self.flip_average not in typing.get_args(FlipAverage):
            raise ValueError(
                f"flip_average is {self.flip_average!r}; it must be "
                f"{' or '.join(typing.get_args(FlipAverage))}"
            )
        if self.flip_average != "depth" and not self.flip_tta:
            raise ValueError(f"flip_average is {self.flip_average!r}, which needs flip_tta=True")

    def build(self) -> Protocol:
        """The (first) protocol with its options."""
        return self.build_all()[0]

    def build_all(self) -> tuple[Protocol, ...]:
        """The protocols with their options; raises ConfigError if one is unknown."""
        # Without options for saved predictions only: a model's predictions show its input.
        known = (*protocols.OPTIONS, *protocols.MEASURING)
        options = {name: value for name, value in vars(self).items() if name in known}
        return protocols.get_all(self.protocol, **options)
