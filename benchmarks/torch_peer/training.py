"""One training step of self-diffusion as in the release: L1 + L2 + 0.5 DDIM, with Adam."""

import functools

import torch
from torch.utils.checkpoint import checkpoint

from torch_peer.encoders import SwinBlock


def make_step(model, learning_rate: float):
    """Returns `(batch) -> loss, l1, l2, ddim, gradient_norm`, which updates the model's weights.

    The batch has the names and meanings of the arguments of `terms`.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)

    def step(batch):
        optimizer.zero_grad(set_to_none=True)
        parts = terms(model, **batch)
        loss = parts["l1"] + parts["l2"] + 0.5 * parts["ddim"]
        loss.backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        optimizer.step()
        return {"loss": loss.detach(), "gradient_norm": norm} | {
            name: value.detach() for name, value in parts.items()
        }

    return step


def terms(model, image, depth, noise, ddim_noise, timesteps):
    """The losses of a batch; depth is in metres, 0 where unmeasured."""
    condition = model.condition(image)
    # Updates the encoder's running statistics, as in the release, though no loss reads its latent.
    model.depth_head.depth_transform.encode(depth)
    latent = model.sample(condition, noise)
    predicted_depth = model.depth_head.depth_transform.decode(latent)
    alpha = model.alphas[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latent + (1 - alpha).sqrt() * ddim_noise
    predicted = model.depth_head.model(condition, noisy, timesteps)
    is_valid = depth > 1e-4
    error = (predicted_depth.clamp(0, 88) - depth.clamp(0, 88))[is_valid]
    return {
        "l1": error.abs().mean(),
        "l2": error.square().mean(),
        "ddim": (predicted - ddim_noise).square().mean(),
    }


def checkpointed(model, encoder: bool = False):
    """The model with every denoiser call recomputed in the backward pass, and the blocks of a Swin
    encoder as well with `encoder`."""
    parts = [model.depth_head.model]
    if encoder:
        parts += [module for module in model.modules() if isinstance(module, SwinBlock)]
    for part in parts:
        part.forward = functools.partial(checkpoint, part.forward, use_reentrant=False)
    return model
