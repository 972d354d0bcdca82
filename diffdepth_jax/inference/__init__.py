"""Loads checkpoints as a `DepthModel` and predicts depth for images; no data pipeline."""

from diffdepth_jax.inference.export import export
from diffdepth_jax.inference.load import load, save_recalibrated
from diffdepth_jax.inference.model import DepthModel

__all__ = ["DepthModel", "export", "load", "save_recalibrated"]
