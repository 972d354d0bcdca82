"""Time and memory of a training step of self-diffusion, against plain PyTorch.

    python benchmarks/training_step.py [--cases="swin_tiny 96x320"]

Forward and backward pass through the whole network and all 20 steps of the sampler, and Adam, for a
batch of one image. The backward pass recomputes nothing, norms and activations in the sampler
("convolutions"), the sampler's steps ("checkpoint"), or the encoder's blocks as well ("checkpoint
all"). Weights, x_T and the noise of the DDIM loss are the peer's; drop-path is off. Losses and the
gradient norm are compared at the first step. Appends to results/benchmarks.csv.
"""

import dataclasses
from pathlib import Path

import harness
import numpy as np
import peer
from harness import Question, Way

SWIN = ("swin_tiny 96x320",)
LEARNING_RATE = 1e-5
COMPARED = ("loss", "l1", "l2", "ddim", "gradient_norm")


def batch(height: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    noise = peer.noise(height, width)
    depth = rng.uniform(2, 60, (1, height, width, 1)) * (rng.uniform(size=(height, width, 1)) < 0.2)
    return {
        "image": rng.standard_normal((1, height, width, 3), np.float32),
        "depth": depth.astype(np.float32),
        "noise": noise,
        "ddim_noise": rng.standard_normal(noise.shape, np.float32),
        "timesteps": np.array([500], np.int32),
    }


def torch_way(checkpoint: bool, encoder: bool = False):
    def prepare(case: str, folder: Path):
        import torch
        from torch_peer import training

        variant, height, width = peer.case(case)
        model = peer.torch_model(variant, peer.weights(variant, folder)).train()
        for module in model.modules():
            if hasattr(module, "drop_path_rate"):
                module.drop_path_rate = 0.0
        if checkpoint:
            model = training.checkpointed(model, encoder)
        arrays = batch(height, width)
        tensors = {name: peer.to_torch(arrays[name]) for name in arrays if name != "timesteps"}
        tensors["timesteps"] = torch.from_numpy(arrays["timesteps"]).long()
        step = training.make_step(model, LEARNING_RATE)
        return lambda: {name: value.numpy() for name, value in step(tensors).items()}

    return prepare


def jax_way(remat: str, encoder_remat: str = "none"):
    def prepare(case: str, folder: Path):
        import jax
        import optax

        import diffdepth_jax
        from diffdepth_jax.models.networks import diffusion_depth
        from diffdepth_jax.training import state as state_lib
        from diffdepth_jax.training.objectives import pixel, self_diffusion

        variant, height, width = peer.case(case)
        model = diffdepth_jax.load(peer.weights(variant, folder))
        config = dataclasses.replace(model.config, remat=remat)
        if hasattr(config.encoder, "drop_path_rate"):
            encoder = dataclasses.replace(config.encoder, drop_path_rate=0.0, remat=encoder_remat)
            config = dataclasses.replace(config, encoder=encoder)
        network = diffusion_depth.build(config)
        objective = self_diffusion.VARIANTS["release"]

        def loss(params, batch_stats, batch, key, step):
            draws = self_diffusion.Draws(
                batch["noise"], batch["ddim_noise"], batch["timesteps"], key
            )
            terms, aux = self_diffusion.terms_from_draws(
                objective, network, params, batch_stats, batch, draws
            )
            return pixel.weighted_sum(objective, terms, step, 1), aux

        optimizer = optax.adam(LEARNING_RATE)
        step = state_lib.make_train_step(loss, optimizer, lambda step: LEARNING_RATE)
        step = jax.jit(step, donate_argnums=0)
        # In one program, as training does: made one by one, every shape would compile and keep one.
        state = jax.jit(lambda variables: state_lib.create(variables, optimizer))(model.variables)
        del model
        arrays = batch(height, width)
        arrays = jax.device_put(arrays | {"valid_mask": arrays["depth"] > 0})
        key = jax.random.key(0)

        def compute():
            nonlocal state
            state, scalars = step(state, arrays, key)
            return {name: np.asarray(scalars[name]) for name in COMPARED}

        return compute

    return prepare


QUESTION = Question(
    "training step",
    ("res18 96x320", *SWIN),
    {
        "torch": Way("torch", torch_way(checkpoint=False)),
        "torch checkpoint": Way("torch", torch_way(checkpoint=True)),
        "torch checkpoint all": Way("torch", torch_way(checkpoint=True, encoder=True), cases=SWIN),
        "jax": Way("jax", jax_way("none")),
        "jax convolutions": Way("jax", jax_way("convolutions")),
        "jax checkpoint": Way("jax", jax_way("full")),
        "jax checkpoint all": Way("jax", jax_way("full", "full"), cases=SWIN),
    },
    peer.write_weights,
)

if __name__ == "__main__":
    harness.main(QUESTION, __doc__)
