"""Diffusion on the ground truth (DiffusionDepth's ablation): noise is added to the encoded depth.

All else is as in self-diffusion. What the ablation shows is why that exists: the latent of sparse
ground truth says little about the pixels between the measurements, and on KITTI this fails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn

from diffdepth_jax.training.objectives import self_diffusion


@dataclass(frozen=True)
class Config(self_diffusion.Config):
    """See `self_diffusion.Config`."""

    name: Literal["ground_truth_diffusion"] = "ground_truth_diffusion"


def build(config: Config, model: nn.Module, num_steps: int) -> Callable[..., tuple[Any, Any]]:
    """Returns `(params, batch_stats, batch, key, step) -> (loss, Aux)`, a pure function."""
    return self_diffusion.build(config, model, num_steps, diffused="ground_truth")
