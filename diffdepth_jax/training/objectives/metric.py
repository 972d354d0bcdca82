"""Losses for metric students with metric labels: on depth, its logarithm and its shape.

Distillation can use the same losses as training on measured depth. Besides the terms of `pixel`,
there are a relative error, which weights near and far pixels equally, and the loss of `ssi`, which
only compares the shape.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Key

from diffdepth_jax.ops import losses
from diffdepth_jax.training.objectives import pixel
from diffdepth_jax.training.objectives import ssi as ssi_lib
from diffdepth_jax.training.objectives.pixel import Aux, PixelTerms
from diffdepth_jax.training.objectives.ssi import SsiTerms


@dataclass(frozen=True)
class Config(PixelTerms):
    """Weights of the loss terms, each a mean over the batch's images, and their options.

    Attributes:
        l1, l2, silog, max_depth, silog_options, auxiliary_fraction: see `pixel.PixelTerms`.
        log_l1: absolute error of log depth.
        ssi: scale- and shift-invariant loss, including its gradient term.
        ssi_options: options of the ssi term.
    """

    WEIGHTS: ClassVar[tuple[str, ...]] = (*PixelTerms.WEIGHTS, "log_l1", "ssi")

    name: Literal["metric"] = "metric"
    l2: float = 0.0
    silog: float = 1.0
    log_l1: float = 0.0
    ssi: float = 0.0
    ssi_options: SsiTerms = field(default_factory=SsiTerms)


def build(config: Config, model: nn.Module, num_steps: int) -> Callable[..., tuple[Array, Aux]]:
    """Returns `(params, batch_stats, batch, key, step) -> (loss, Aux)`, a pure function.

    Raises:
        ConfigError: if the model starts from noise or does not predict metres.
    """
    pixel.check_network("metric", model, "metric_depth")

    def loss_function(
        params: Any, batch_stats: Any, batch: Mapping[str, Array], key: Key[Array, ""], step: Array
    ) -> tuple[Array, Aux]:
        depth, batch_stats = pixel.forward(model, params, batch_stats, batch["image"], key)
        target, valid_mask = pixel.ground_truth(batch)
        terms = pixel.pixel_terms(config, depth, target, valid_mask)
        terms["log_l1"] = jnp.mean(losses.log_l1(depth, target, valid_mask))
        scalars = pixel.depth_scalars(depth, valid_mask)
        if config.ssi:
            both = ssi_lib.compared(config.ssi_options, depth, "metric_depth", batch)
            terms["ssi"], shape_scalars = ssi_lib.ssi_terms(config.ssi_options, both)
            scalars |= shape_scalars
        loss = pixel.weighted_sum(config, terms, step, num_steps)
        return loss, Aux(scalars | terms, batch_stats)

    return loss_function
