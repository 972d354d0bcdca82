"""The scale- and shift-invariant loss, mainly for relative networks.

The loss of MiDaS (Ranftl et al. 2020, arXiv:1907.01341, section 5) and, in its median form, of
distillation on generated images (Tosi et al. 2024, arXiv:2407.16698, section 3): only the shape of
an image's depth matters, not its unit. Labels come from a teacher or from measurements.

It does not constrain scale, so a metric network may lose its scale; `metric` uses it as one of
several terms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.ops import losses
from diffdepth_jax.ops.losses import SsiForm
from diffdepth_jax.training.objectives import pixel
from diffdepth_jax.training.objectives.pixel import Aux
from diffdepth_jax.typing import Output

Space = Literal["auto", "depth", "inverse_depth"]


@dataclass(frozen=True)
class SsiTerms:
    """The loss and its options.

    Attributes:
        form: how scale and shift are removed, see `ops.losses.aligned_residual`: "median" as in the
            distillation, "trimmed" as for MiDaS, or "least_squares", in the squared unit of the
            labels.
        trim: fraction of an image's pixels, those with the largest residuals, that "trimmed" leaves
            out.
        gradient: weight of the additional `ops.losses.multi_scale_gradient`; 0.5 for MiDaS, 0 for
            the distillation.
        gradient_scales: number of scales of that term.
        space: where prediction and label are compared. "auto" uses depth if both are metric,
            otherwise inverse depth.
        min_depth: metres; smaller depths are raised to it before inversion.
    """

    form: SsiForm = "median"
    trim: float = 0.2
    gradient: float = 0.0
    gradient_scales: int = 4
    space: Space = "auto"
    min_depth: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 1:
            raise ValueError(f"trim is {self.trim}; it must be in [0, 1)")
        if not self.gradient >= 0:
            raise ValueError(f"gradient is {self.gradient}; it must not be negative")
        if self.gradient_scales < 1:
            raise ValueError(f"gradient_scales is {self.gradient_scales}; it must be at least 1")
        if not self.min_depth > 0:
            raise ValueError(f"min_depth is {self.min_depth}; it must be positive")


@dataclass(frozen=True)
class Config(SsiTerms):
    """See `SsiTerms`."""

    name: Literal["ssi"] = "ssi"


class Compared(NamedTuple):
    """The maps that the loss compares, which should be equal up to scale and shift."""

    prediction: Float[Array, "b h w 1"]
    target: Float[Array, "b h w 1"]
    valid_mask: Bool[Array, "b h w 1"]


def build(config: Config, model: nn.Module, num_steps: int) -> Callable[..., tuple[Array, Aux]]:
    """Returns `(params, batch_stats, batch, key, step) -> (loss, Aux)`, a pure function.

    An image whose label is constant or has no valid pixel has loss 0; the scalar `flat_labels` is
    the fraction of such images, `flat_predictions` that of images with a constant prediction. If
    all predictions of a relative network are constant, it has died: its last ReLU passes no
    gradient.

    Raises:
        ConfigError: if the model starts from noise or cannot predict in this space.
    """
    del num_steps
    pixel.check_network("ssi", model)
    output = model.config.output
    if config.space == "depth" and output == "relative_disparity":
        raise ConfigError(
            f"space is 'depth', but {model.config.name!r} predicts relative disparity, which has "
            "no known depth: use 'inverse_depth' or 'auto'"
        )

    def loss_function(
        params: Any, batch_stats: Any, batch: Mapping[str, Array], key: Key[Array, ""], step: Array
    ) -> tuple[Array, Aux]:
        del step
        prediction, batch_stats = pixel.forward(model, params, batch_stats, batch["image"], key)
        both = compared(config, prediction, output, batch)
        loss, scalars = ssi_terms(config, both)
        scalars |= pixel.depth_scalars(prediction, both.valid_mask, output)
        return loss, Aux(scalars, batch_stats)

    return loss_function


def compared(
    config: SsiTerms,
    prediction: Float[Array, "b h w 1"],
    output: Output,
    batch: Mapping[str, Array],
) -> Compared:
    """Prediction and label in the config's space.

    Args:
        config: the options.
        prediction: the network's output.
        output: what the network predicts.
        batch: its "relative_disparity", if present, is the label, otherwise its "depth".

    Raises:
        ConfigError: if labels are relative but depth should be compared.
    """
    relative_labels = "relative_disparity" in batch
    relative = relative_labels or output == "relative_disparity"
    if config.space == "depth" and relative_labels:
        raise ConfigError(
            "space is 'depth', but the labels of the training data are relative disparity, which "
            "has no known depth: use 'inverse_depth' or 'auto'"
        )
    if relative_labels:
        target, valid_mask = batch["relative_disparity"], batch["valid_mask"]
    else:
        target, valid_mask = pixel.ground_truth(batch)
    if config.space == "inverse_depth" or (config.space == "auto" and relative):
        if output == "metric_depth":
            prediction = 1.0 / jnp.maximum(prediction, config.min_depth)
        if not relative_labels:
            target = 1.0 / jnp.maximum(target, config.min_depth)
    return Compared(prediction, target, valid_mask)


def ssi_terms(
    config: SsiTerms, both: Compared
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss, a mean over the batch's images, and its terms."""
    aligned = losses.aligned_residual(*both, form=config.form)
    masked = (aligned.residual, both.valid_mask)
    loss = jnp.mean(losses.ssi(*masked, form=config.form, trim=config.trim))
    scalars = {
        "ssi": loss,
        "flat_labels": jnp.mean(aligned.flat_label.astype(jnp.float32)),
        "flat_predictions": jnp.mean(aligned.flat_prediction.astype(jnp.float32)),
    }
    if config.gradient:
        gradient = losses.multi_scale_gradient(*masked, num_scales=config.gradient_scales)
        scalars["ssi_gradient"] = jnp.mean(gradient)
        loss += config.gradient * scalars["ssi_gradient"]
    return loss, scalars
