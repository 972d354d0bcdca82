"""Diffusion-based and robust monocular depth estimation in JAX.

import diffdepth_jax
model = diffdepth_jax.load("runs/demo")       # or an official .pt, .safetensors, state dict
depth = model.predict("street.png")           # metres, float32 [h, w]
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["DepthModel", "__version__", "load"]

if TYPE_CHECKING:
    from diffdepth_jax.inference import DepthModel, load  # type: ignore[no-redef]


def __getattr__(name: str) -> Any:
    # Imported lazily, so that data workers and scoring of saved depth maps do not import JAX.
    if name in ("DepthModel", "load"):
        from diffdepth_jax import inference

        return getattr(inference, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
