"""From a checkpoint to a `DepthModel`, and from images to depth; arrays only, no data pipeline."""

from diffdepth_jax.inference.export import export
from diffdepth_jax.inference.load import load, save_recalibrated
from diffdepth_jax.inference.model import DepthModel

__all__ = ["DepthModel", "export", "load", "save_recalibrated"]
