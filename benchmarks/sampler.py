"""Time and memory of the sampler alone, 20 steps, against plain PyTorch with the same weights.

    python benchmarks/sampler.py [--cases="swin_tiny 96x320"] [--ways=torch,jax]

The condition and x_T of one image of each size are given; for the Swin-type denoiser (with `convA`
and `convB`) the condition has a quarter of the image size, for the ResNet-type half. "jax" uses the
form of the sampler that suits the size and the device, "jax plain" the plain one; the ResNet-type
has no other. Appends to results/benchmarks.csv.
"""

from pathlib import Path

import harness
import peer
from harness import Question, Way


def torch_way(compiled: bool):
    def prepare(case: str, folder: Path):
        import torch

        variant, height, width = peer.case(case)
        model = peer.torch_model(variant, peer.weights(variant, folder))
        if compiled:
            model.depth_head.model = torch.compile(model.depth_head.model)
        condition = peer.to_torch(peer.condition(variant, height, width))
        noise = peer.to_torch(peer.noise(height, width))

        @torch.no_grad()
        def compute():
            latent = model.sample(condition, noise, peer.STEPS)
            return {"latent": latent.permute(0, 2, 3, 1).numpy()}

        return compute

    return prepare


def jax_way(form: str):
    def prepare(case: str, folder: Path):
        import jax
        import numpy as np

        import diffdepth_jax

        variant, height, width = peer.case(case)
        model = diffdepth_jax.load(peer.weights(variant, folder), sampler_form=form)
        condition, noise = map(
            jax.device_put, (peer.condition(variant, height, width), peer.noise(height, width))
        )

        @jax.jit
        def sample(variables, condition, noise):
            return model.model.apply(variables, condition, noise, peer.STEPS, method="sample")

        return lambda: {"latent": np.asarray(sample(model.variables, condition, noise))}

    return prepare


CASES = tuple(
    f"{variant} {size}" for variant in ("swin_tiny", "res18") for size in ("96x320", "176x608")
)
QUESTION = Question(
    "sampler",
    CASES,
    {
        "torch": Way("torch", torch_way(compiled=False)),
        "jax": Way("jax", jax_way("auto")),
        "jax plain": Way("jax", jax_way("plain"), cases=CASES[:2]),
        "torch.compile": Way("torch", torch_way(compiled=True), optional=True, cases=CASES[::2]),
    },
    peer.write_weights,
)

if __name__ == "__main__":
    harness.main(QUESTION, __doc__)
