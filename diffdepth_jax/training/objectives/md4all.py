"""md4all's own day-to-adverse distillation (Gasperini et al. 2023, arXiv:2308.09711, md4all-DD).

|student - teacher| / student in scaled inverse depth, averaged over pixels and over the decoder's
four scales (`SupervisedLoss` with the method `abs_rel`, the only loss in `train_md4allDDa_*.yaml`).
Gradients also flow through the denominator.

A teacher that runs during training predicts every scale, as published. A cached label is a single
map: coarser scales are then compared with the mean of its valid inverse depths in each block of
pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.networks.network import PredictsScales
from diffdepth_jax.ops import losses
from diffdepth_jax.ops.image import adaptive_average_pool, size_of
from diffdepth_jax.training.objectives import pixel
from diffdepth_jax.training.objectives.pixel import MIN_DEPTH, Aux

# Of any scale; sizes differ within a call.
Map = Float[Array, "b _ _ 1"]
Mask = Bool[Array, "b _ _ 1"]


@dataclass(frozen=True)
class Config:
    """The loss.

    Attributes:
        scales: number of scales used, starting with the finest. Must be 1 for a network with a
            single scale; the loss is then AbsRel of its depth.
    """

    name: Literal["md4all"] = "md4all"
    scales: int = 4

    def __post_init__(self) -> None:
        if self.scales < 1:
            raise ValueError(f"scales is {self.scales}; it must be at least 1")


def build(config: Config, model: nn.Module, num_steps: int) -> Callable[..., tuple[Array, Aux]]:
    """Returns `(params, batch_stats, batch, key, step) -> (loss, Aux)`, a pure function.

    Raises:
        ConfigError: if the model starts from noise, does not predict metres, or has fewer scales.
    """
    del num_steps
    pixel.check_network("md4all", model, "metric_depth")
    available = model.num_scales if isinstance(model, PredictsScales) else 1
    if config.scales > available:
        raise ConfigError(
            f"scales is {config.scales}, but {model.config.name!r} predicts depth at {available}: "
            f"set scales={available}"
        )

    def loss_function(
        params: Any, batch_stats: Any, batch: Mapping[str, Array], key: Key[Array, ""], step: Array
    ) -> tuple[Array, Aux]:
        del step
        maps, batch_stats = _inverse_depths(model, params, batch_stats, batch["image"], key)
        target, valid_mask = pixel.ground_truth(batch)
        targets = inverse_depths_at(target, valid_mask, [size_of(each) for each in maps])
        if "inverse_depths" in batch:
            known = [mask for _, mask in targets]
            targets = list(zip(batch["inverse_depths"], known, strict=True))
        terms = {
            f"md4all_scale{scale}": jnp.mean(losses.relative_l1(prediction, *label))
            for scale, (prediction, label) in enumerate(
                zip(maps[: config.scales], targets, strict=False)
            )
        }
        scalars = terms | pixel.depth_scalars(1.0 / maps[0], valid_mask)
        loss = cast(Array, sum(terms.values())) / config.scales
        return loss, Aux(scalars, batch_stats)

    return loss_function


def inverse_depths_at(
    depth: Map, valid_mask: Mask, sizes: Sequence[tuple[int, int]]
) -> list[tuple[Map, Mask]]:
    """Inverse depth (1/m) and where it is known, at each size: means of the known pixels in a
    block.

    Args:
        depth: in metres.
        valid_mask: where it is known.
        sizes: (height, width) of each scale; the depth's size must be a multiple.
    """
    known = valid_mask.astype(jnp.float32)
    inverse = jnp.where(valid_mask, 1.0 / jnp.maximum(depth, MIN_DEPTH), 0.0)
    found = []
    for size in sizes:
        share = adaptive_average_pool(known, size)
        total = adaptive_average_pool(inverse, size)
        found.append((total / jnp.where(share > 0, share, 1.0), share > 0))
    return found


def _inverse_depths(
    model: nn.Module, params: Any, batch_stats: Any, image: Array, key: Array
) -> tuple[Sequence[Array], Any]:
    if isinstance(model, PredictsScales):
        return pixel.forward(model, params, batch_stats, image, key, "inverse_depths")
    depth, batch_stats = pixel.forward(model, params, batch_stats, image, key)
    return (1.0 / jnp.maximum(depth, MIN_DEPTH),), batch_stats
