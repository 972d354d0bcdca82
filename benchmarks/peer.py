"""The same network, weights and inputs for this project and its peer in `torch_peer`."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import harness
import numpy as np

STEPS = 20


def weights(variant: str, folder: Path) -> Path:
    """Where `write_weights` writes a variant's weights."""
    return folder / f"{variant}.safetensors"


def write_weights(name: str, folder: Path) -> None:
    """Writes random weights of a case's variant under the authors' names, in a separate process."""
    variant = case(name)[0]
    path = weights(variant, folder)
    if not path.exists():
        command = [str(harness.PYTHON["jax"]), __file__, variant, str(path)]
        subprocess.run(command, check=True, env=harness.environment())


def write(variant: str, path: Path) -> None:
    import jax

    from diffdepth_jax import inference
    from diffdepth_jax.models.encoders import swin
    from diffdepth_jax.models.networks import diffusion_depth

    if variant == "swin_tiny":  # the release has no such network
        config = diffusion_depth.Config(
            encoder=swin.VARIANTS["tiny"], denoiser=diffusion_depth.DenoiserConfig(fuse=True)
        )
    else:
        config = diffusion_depth.VARIANTS[variant]
    network = diffusion_depth.build(config)
    variables = jax.jit(network.init_variables)(jax.random.key(0))
    # Untrained, the latent is some hundred times too large for the decoder, and depth is either 0
    # or infinite.
    norm = variables["batch_stats"]["codec"]["decoder"]["norm0"]
    norm["var"] = norm["var"] * 1e4
    inference.export(inference.DepthModel(network, variables, config), path)


def case(name: str) -> tuple[str, int, int]:
    """Variant, height and width of a case "VARIANT HxW"."""
    variant, size = name.split()[:2]
    height, width = map(int, size.split("x"))
    return variant, height, width


def image(height: int, width: int) -> np.ndarray:
    """uint8 [h, w, 3]."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    """x_T of an image of this size, float32 [1, h / 2, w / 2, 16]."""
    shape = (1, -(-height // 2), -(-width // 2), 16)
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def condition(variant: str, height: int, width: int) -> np.ndarray:
    """Stands in for an encoded image, float32 [1, h / stride, w / stride, 256]."""
    stride = 2 if variant.startswith("res") else 4
    shape = (1, -(-height // stride), -(-width // stride), 256)
    return np.abs(np.random.default_rng(2).standard_normal(shape, np.float32))


def to_torch(array: np.ndarray) -> Any:
    """NHWC to NCHW in channels_last, sharing memory."""
    import torch

    return torch.from_numpy(array).permute(0, 3, 1, 2)


@functools.cache
def torch_model(variant: str, path: Path) -> Any:
    import torch
    from torch_peer import network

    torch.set_num_threads(harness.cores())
    return network.load(variant, path)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
