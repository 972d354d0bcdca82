"""Neck, denoiser, codec and sampler, and the whole network."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from torch_peer.encoders import ResNet, Swin

WIDTH, LATENT = 256, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DiffusionDepth(nn.Module):
    """Image to depth: `condition`, `sample`, `decode`.

    Args:
        encoder: returns features, fine to coarse.
        fuse: whether the denoiser has `convA` and `convB`, as with Swin.
    """

    def __init__(self, encoder: nn.Module, fuse: bool):
        super().__init__()
        self.depth_backbone = encoder
        self.depth_head = nn.Module()
        self.depth_head.conv_lateral = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()
            )
            for channels in encoder.channels
        )
        self.depth_head.conv_up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2, bias=False),
                nn.BatchNorm2d(WIDTH),
                nn.ReLU(),
            )
            for _ in encoder.channels[1:]
        )
        self.depth_head.model = Denoiser(fuse)
        self.depth_head.depth_transform = Codec()
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        self.register_buffer("alphas", (1 - betas).cumprod(0).float(), persistent=False)

    def forward(self, image, noise, steps: int = 20):
        height, width = image.shape[2:]
        if height % 2 or width % 2:
            image = functional.pad(image, (0, width % 2, 0, height % 2), mode="replicate")
        latent = self.sample(self.condition(image), noise, steps)
        return self.depth_head.depth_transform.decode(latent)[:, :, :height, :width]

    def condition(self, image):
        features = self.depth_backbone(image)
        condition = None
        for level in reversed(range(len(features))):
            lateral = self.depth_head.conv_lateral[level](features[level])
            if condition is not None:
                coarse = self.depth_head.conv_up[level](condition)
                if coarse.shape != lateral.shape:
                    coarse = functional.adaptive_avg_pool2d(coarse, lateral.shape[2:])
                lateral = lateral + coarse
            condition = lateral
        return condition

    def sample(self, condition, noise, steps: int = 20):
        """DDIM without added noise, at timesteps (steps - 1, ..., 0) * (1000 // steps)."""
        latent, ratio = noise, 1000 // steps
        for timestep in range((steps - 1) * ratio, -1, -ratio):
            timesteps = torch.full((len(noise),), timestep, device=noise.device)
            predicted = self.depth_head.model(condition, latent, timesteps)
            alpha = self.alphas[timestep]
            previous = self.alphas[timestep - ratio] if timestep >= ratio else torch.tensor(1.0)
            clean = (latent - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
            latent = previous.sqrt() * clean + (1 - previous).sqrt() * predicted
        return latent


class Denoiser(nn.Module):
    """The release's block, in its order: at every step the time embedding is added to the
    condition, which is resized to the latent's size and added to the embedded latent."""

    def __init__(self, fuse: bool):
        super().__init__()
        self.time_embedding = nn.Embedding(1280, WIDTH)
        self.noise_embedding = nn.Sequential(
            nn.Conv2d(LATENT, 64, 3, 1, 1),
            nn.GroupNorm(4, 64),
            nn.ReLU(),
            nn.Conv2d(64, WIDTH, 3, 1, 1),
            nn.GroupNorm(4, WIDTH),
            nn.ReLU(),
        )
        if fuse:
            self.upsample_fuse = nn.Module()
            for name in ("convA", "convB"):
                module = nn.Module()
                module.conv = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)
                self.upsample_fuse.add_module(name, module)
        self.pred = nn.Sequential(
            nn.Conv2d(WIDTH, 64, 3, 1, 1),
            nn.GroupNorm(4, 64),
            nn.ReLU(),
            nn.Conv2d(64, LATENT, 3, 1, 1),
            nn.GroupNorm(4, LATENT),
            nn.ReLU(),
        )

    def forward(self, condition, latent, timesteps):
        hidden = condition + self.time_embedding(timesteps)[..., None, None]
        if hidden.shape[2:] != latent.shape[2:]:
            hidden = functional.interpolate(
                hidden, latent.shape[2:], mode="bilinear", align_corners=True
            )
        hidden = hidden + self.noise_embedding(latent)
        if hasattr(self, "upsample_fuse"):
            hidden = self.upsample_fuse.convB.conv(self.upsample_fuse.convA.conv(hidden))
        return self.pred(hidden)


class Codec(nn.Module):
    """Depth in metres to a latent of half the size, and back: depth = 1 / sigmoid - 1."""

    def __init__(self):
        super().__init__()
        self.conv_transform = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(1, LATENT, 3, 2, 1, bias=False),
                nn.BatchNorm2d(LATENT),
                nn.LeakyReLU(0.2),
            ),
            nn.Sequential(
                nn.Conv2d(LATENT, LATENT, 3, 1, 1, bias=False), nn.BatchNorm2d(LATENT), nn.Tanh()
            ),
        )
        self.conv_inv_transform = nn.Sequential(
            nn.ConvTranspose2d(LATENT, LATENT, 4, 2, 1),
            nn.BatchNorm2d(LATENT),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(LATENT, 1, 3, 1, 1), nn.Sigmoid()),
        )

    def encode(self, depth):
        return self.conv_transform(depth)

    def decode(self, latent):
        # Below float32 precision the inverse sigmoid would be infinite.
        return 1 / self.conv_inv_transform(latent).clamp(min=1e-6) - 1


def build(variant: str) -> DiffusionDepth:
    """`res18`, `swin_tiny` or `swin_large`."""
    if variant == "res18":
        return DiffusionDepth(ResNet(), fuse=False)
    widths = {
        "swin_tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
        "swin_large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
    }
    return DiffusionDepth(Swin(*widths[variant]), fuse=True)


def load(variant: str, path: Path) -> DiffusionDepth:
    """The network with the weights of a file that `tools/export_torch.py` writes, in eval mode."""
    model = build(variant)
    missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{path}: missing {missing}, unexpected {unexpected}")
    return model.eval().to(memory_format=torch.channels_last)


def normalised(image):
    """RGB, uint8 [h, w, 3] in 0 to 255, to the network's input [1, 3, h, w]."""
    image = torch.as_tensor(image).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return ((image - mean) / std).contiguous(memory_format=torch.channels_last)
