"""Small networks with random weights: one that denoises, and one that predicts disparity."""

from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax import inference
from diffdepth_jax.app.uploads import Upload
from diffdepth_jax.inference import DepthModel
from tests.models.networks.test_contract import small


def small_model(name: str) -> DepthModel:
    _, module, variables = small(name)
    return DepthModel(module, variables, module.config)


@pytest.fixture(scope="session")
def denoising() -> DepthModel:
    return small_model("diffusion_depth")


@pytest.fixture(scope="session")
def relative() -> DepthModel:
    return small_model("dpt")


@pytest.fixture(scope="session")
def files(denoising, relative, tmp_path_factory) -> list[Path]:
    """Both as files with published names."""
    folder = tmp_path_factory.mktemp("weights")
    paths = [folder / "denoising.safetensors", folder / "relative.safetensors"]
    for model, path in zip((denoising, relative), paths, strict=True):
        inference.export(model, path)
    return paths


@pytest.fixture
def upload() -> Upload:
    image = np.random.default_rng(0).integers(0, 256, (23, 38, 3), np.uint8)
    return Upload("street", image, (230, 380))
