"""Ground-truth diffusion (DiffusionDepth's ablation): noise is added to the encoded depth.

The ablation motivates self-diffusion: the latent of sparse ground truth says little about pixels
between measurements, and this fails on KITTI. `Config.decoded` selects one of two forms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn

from diffdepth_jax.training.objectives import self_diffusion
from diffdepth_jax.training.objectives.self_diffusion import Latent


@dataclass(frozen=True)
class Config(self_diffusion.Config):
    """See `self_diffusion.Config`.

    Attributes:
        decoded: the latent that the pixel terms decode. With "refined", everything except the
            diffused latent is as in self-diffusion: the sampler runs, and depth is learnt through
            it. With "ground_truth", they reconstruct the ground truth from its own latent and so
            only train the codec. The denoiser then only learns from the encoded ground truth, as in
            other latent diffusion models, and training never runs the sampler.
    """

    name: Literal["ground_truth_diffusion"] = "ground_truth_diffusion"  # type: ignore[assignment]
    decoded: Latent = "refined"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoded == "refined":
            return
        if self.latent or self.gradient_steps is not None or self.step_counts:
            raise ValueError(
                f"latent is {self.latent}, gradient_steps {self.gradient_steps} and step_counts "
                f"{self.step_counts}, but with decoded='ground_truth' training does not run the "
                "sampler that they apply to: set them to 0, None and ()"
            )
        if not self.ddim or not (self.l1 or self.l2 or self.silog):
            raise ValueError(
                "with decoded='ground_truth', only ddim trains the denoiser and only l1, l2 and "
                "silog train the decoder: give ddim and one of these a weight"
            )


def build(config: Config, model: nn.Module, num_steps: int) -> Callable[..., tuple[Any, Any]]:
    """Returns `(params, batch_stats, batch, key, step) -> (loss, Aux)`, a pure function."""
    return self_diffusion.build(config, model, num_steps, "ground_truth", config.decoded)
