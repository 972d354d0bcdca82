"""A small network, the names in its release, and images, for the tests of inference."""

import numpy as np

from diffdepth_jax.models.codec import CodecConfig
from diffdepth_jax.models.denoiser import DenoiserConfig
from diffdepth_jax.models.encoders import resnet
from diffdepth_jax.models.necks import NeckConfig
from diffdepth_jax.models.networks import diffusion_depth

CONFIG = diffusion_depth.Config(
    encoder=resnet.Config(depths=(1, 1, 1, 1), widths=(4, 6, 8, 10)),
    neck=NeckConfig(8),
    codec=CodecConfig(latent_channels=4),
    denoiser=DenoiserConfig(hidden_features=8),
    diffusion=diffusion_depth.DiffusionConfig(num_inference_steps=3),
    max_depth=80.0,
)
STEP = 7


def image(height=37, width=50, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def released_shapes() -> dict[str, tuple[int, ...]]:
    def norm(name, width):
        entries = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{entry}": (width,) for entry in entries}

    shapes, inputs = {}, 3
    for index, width in enumerate(CONFIG.encoder.channels):
        block = f"depth_backbone.layers.{index}.0"
        shapes |= {
            f"{block}.conv1.weight": (width, inputs, 3, 3),
            f"{block}.conv2.weight": (width, width, 3, 3),
            f"{block}.downsample.weight": (width, inputs, 3, 3),
            f"{block}.downsample.bias": (width,),
            **norm(f"{block}.bn1", width),
            **norm(f"{block}.bn2", width),
            f"depth_head.conv_lateral.{index}.0.weight": (8, width, 3, 3),
            **norm(f"depth_head.conv_lateral.{index}.1", 8),
        }
        if index:
            shapes[f"depth_head.conv_up.{index - 1}.0.weight"] = (8, 8, 2, 2)
            shapes |= norm(f"depth_head.conv_up.{index - 1}.1", 8)
        inputs = width
    codec, denoiser = "depth_head.depth_transform", "depth_head.model"
    convolutions = {
        f"{denoiser}.noise_embedding.0": (8, 4, 3, 3),
        f"{denoiser}.noise_embedding.3": (8, 8, 3, 3),
        f"{denoiser}.pred.0": (8, 8, 3, 3),
        f"{denoiser}.pred.3": (4, 8, 3, 3),
        f"{codec}.conv_inv_transform.0": (4, 4, 4, 4),
        f"{codec}.conv_inv_transform.3.0": (1, 4, 3, 3),
    }
    group_norms = {"noise_embedding.1": 8, "noise_embedding.4": 8, "pred.1": 8, "pred.4": 4}
    return (
        shapes
        | {f"{name}.weight": shape for name, shape in convolutions.items()}
        | {f"{name}.bias": (shape[0],) for name, shape in convolutions.items()}
        | {
            f"{denoiser}.{name}.{entry}": (width,)
            for name, width in group_norms.items()
            for entry in ("weight", "bias")
        }
        | {
            f"{denoiser}.time_embedding.weight": (1280, 8),
            f"{codec}.conv_transform.0.0.weight": (4, 1, 3, 3),
            f"{codec}.conv_transform.1.0.weight": (4, 4, 3, 3),
            **norm(f"{codec}.conv_transform.0.1", 4),
            **norm(f"{codec}.conv_transform.1.1", 4),
            **norm(f"{codec}.conv_inv_transform.1", 4),
        }
    )
