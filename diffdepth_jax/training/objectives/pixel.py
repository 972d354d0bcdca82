"""Losses on depth itself, for networks that map an image directly to metric depth.

Other objectives reuse its parts: the forward pass, the pixel terms and their weights, the
measurement mask, and the check of the network's type.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.networks.network import Denoises
from diffdepth_jax.ops import losses
from diffdepth_jax.typing import Output

# Depths up to this value count as unmeasured, as in DiffusionDepth's release.
MIN_DEPTH = 1e-4


@dataclass(frozen=True)
class SilogConfig:
    """Options of `ops.losses.silog`; the release's `Sig` is scale 2, ddof 1, reduction "batch"."""

    scale: float = 10.0
    variance_focus: float = 0.85
    offset: float = 1e-3
    ddof: Literal[0, 1] = 0
    reduction: Literal["image", "batch"] = "image"

    def __post_init__(self) -> None:
        if not (self.scale > 0 and 0 <= self.variance_focus <= 1 and self.offset > 0):
            raise ValueError(
                f"scale and offset must be positive, and variance_focus between 0 and 1: {self}"
            )


@dataclass(frozen=True)
class PixelTerms:
    """Weights of the pixel terms, each a mean over the batch's images, and their options.

    Attributes:
        l1, l2: absolute and squared error of depth in metres.
        silog: scale-invariant log error.
        max_depth: metres; l1 and l2 clamp prediction and ground truth to it.
        silog_options: constants of the silog term.
        auxiliary_fraction: l1 and l2 are only used in this first fraction of the run's steps (the
            paper's auxiliary losses: 0.5).
    """

    WEIGHTS: ClassVar[tuple[str, ...]] = ("l1", "l2", "silog")

    l1: float = 1.0
    l2: float = 1.0
    silog: float = 0.0
    max_depth: float = 88.0
    silog_options: SilogConfig = field(default_factory=SilogConfig)
    auxiliary_fraction: float = 1.0

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in self.WEIGHTS}
        if min(weights.values()) < 0 or max(weights.values()) == 0:
            raise ValueError(f"weights must not be negative or all zero: {weights}")
        if not self.max_depth > MIN_DEPTH:
            raise ValueError(f"max_depth is {self.max_depth}; it must be positive")
        if not 0 < self.auxiliary_fraction <= 1:
            raise ValueError(
                f"auxiliary_fraction is {self.auxiliary_fraction}; it must be above 0 and at most "
                "1: to disable auxiliary losses, set l1 and l2 to 0"
            )
        auxiliary = {"l1", "l2"}
        if self.auxiliary_fraction < 1 and not any(weights[w] for w in weights.keys() - auxiliary):
            raise ValueError(
                f"auxiliary_fraction is {self.auxiliary_fraction}, but only l1 and l2 have a "
                f"weight: {weights}"
            )


@dataclass(frozen=True)
class Config(PixelTerms):
    """See `PixelTerms`."""

    name: Literal["pixel"] = "pixel"


class Aux(NamedTuple):
    """What a step returns besides its loss: scalars to log, and updated running statistics."""

    scalars: dict[str, Array]
    batch_stats: Any


def build(config: Config, model: nn.Module, num_steps: int) -> Callable[..., tuple[Array, Aux]]:
    """Returns `(params, batch_stats, batch, key, step) -> (loss, Aux)`, a pure function.

    Raises:
        ConfigError: if the model starts from noise or does not predict metres.
    """
    check_network("pixel", model, "metric_depth")

    def loss_function(
        params: Any, batch_stats: Any, batch: Mapping[str, Array], key: Key[Array, ""], step: Array
    ) -> tuple[Array, Aux]:
        depth, batch_stats = forward(model, params, batch_stats, batch["image"], key)
        target, valid_mask = ground_truth(batch)
        terms = pixel_terms(config, depth, target, valid_mask)
        scalars = terms | depth_scalars(depth, valid_mask)
        return weighted_sum(config, terms, step, num_steps), Aux(scalars, batch_stats)

    return loss_function


def check_network(objective: str, model: nn.Module, output: Output | None = None) -> None:
    """Rejects networks that an objective does not support.

    Args:
        objective: the objective's name.
        model: the network's module.
        output: what the network must predict; None for either.

    Raises:
        ConfigError: if the model starts from noise or has a different output.
    """
    name = model.config.name
    if isinstance(model, Denoises):
        raise ConfigError(
            f"the objective {objective!r} needs a network that maps an image to depth, but "
            f"{name!r} starts from noise: use 'self_diffusion'"
        )
    if output == "metric_depth" and model.config.output != output:
        raise ConfigError(
            f"the objective {objective!r} needs a network that predicts depth in metres, but "
            f"{name!r} predicts relative disparity with this config: use 'ssi', or make the "
            "network metric"
        )


def forward(
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    image: Float[Array, "b h w 3"],
    key: Key[Array, ""],
    method: str | None = None,
) -> tuple[Any, Any]:
    """A network's output in training mode, and its updated running statistics.

    Args:
        model: must not start from noise.
        params, batch_stats: its variables; batch_stats may be empty.
        image: normalised.
        key: for drop path.
        method: the module's method to run; None for `__call__`.
    """
    result, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        image,
        train=True,
        mutable=["batch_stats"],
        rngs={"drop_path": key},
        method=method,
    )
    return result, updated.get("batch_stats", {})


def ground_truth(
    batch: Mapping[str, Array],
) -> tuple[Float[Array, "b h w 1"], Bool[Array, "b h w 1"]]:
    """Depth in metres, 0 where unmeasured, and the mask of measured pixels.

    Raises:
        ConfigError: if labels are relative, because 1 / disparity is then not depth.
    """
    if "relative_disparity" in batch:
        raise ConfigError(
            "the labels of the training data are relative disparity, which cannot be converted to "
            "metres: train with the objective 'ssi', or use metric labels"
        )
    valid_mask = batch["valid_mask"] & (batch["depth"] > MIN_DEPTH)
    return jnp.where(valid_mask, batch["depth"], 0.0), valid_mask


def pixel_terms(
    config: PixelTerms,
    depth: Float[Array, "b h w 1"],
    target: Float[Array, "b h w 1"],
    valid_mask: Bool[Array, "b h w 1"],
) -> dict[str, Float[Array, ""]]:
    """All pixel terms, unweighted."""
    masked = (depth, target, valid_mask)
    terms = {
        "l1": losses.l1(*masked, max_depth=config.max_depth),
        "l2": losses.l2(*masked, max_depth=config.max_depth),
        "silog": losses.silog(*masked, **dataclasses.asdict(config.silog_options)),
    }
    return {name: jnp.mean(values) for name, values in terms.items()}


def weighted_sum(
    config: PixelTerms,
    terms: Mapping[str, Float[Array, ""]],
    step: Int[Array, ""],
    num_steps: int,
) -> Float[Array, ""]:
    """The terms weighted by the config, at update `step` (from 0) of `num_steps`."""
    weights = {name: getattr(config, name) for name in config.WEIGHTS}
    if config.auxiliary_fraction < 1:
        counts = step < config.auxiliary_fraction * num_steps
        weights |= {name: jnp.where(counts, weights[name], 0.0) for name in ("l1", "l2")}
    return sum(weights[name] * terms[name] for name in weights if getattr(config, name))


def depth_scalars(
    prediction: Float[Array, "b h w 1"],
    valid_mask: Bool[Array, "b h w 1"],
    output: Output = "metric_depth",
) -> dict[str, Float[Array, ""]]:
    """Scalars logged for any prediction; relative disparity is logged under that name."""
    name = "depth" if output == "metric_depth" else "disparity"
    return {
        f"{name}_mean": jnp.mean(prediction),
        f"{name}_max": jnp.max(prediction),
        "valid_fraction": jnp.mean(valid_mask.astype(jnp.float32)),
    }
