"""A run of a small network with random weights, and the same weights under published names."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffdepth_jax
from diffdepth_jax import registry
from diffdepth_jax.config import to_mapping
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.models.networks.network import TransformersLayout
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.state import TrainState
from diffdepth_jax.weights import rules
from tests.inference.small_model import CONFIG, STEP, released_shapes


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run directory with one checkpoint with random weights."""
    workdir = tmp_path_factory.mktemp("run")
    model = diffusion_depth.build(CONFIG)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    state = TrainState(
        step=jnp.int32(STEP),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state={"moments": variables["params"]},
        ema_params={},
    )
    with Checkpointer(workdir, keep=1) as checkpointer:
        checkpointer.save(STEP, state, {"model": to_mapping(CONFIG)}, b"{}", {})
    return workdir


@pytest.fixture(scope="module")
def model(run) -> diffdepth_jax.DepthModel:
    return diffdepth_jax.load(run)


@pytest.fixture(scope="module")
def released_state_dict() -> dict[str, np.ndarray]:
    """Random weights for CONFIG under the release's names."""
    rng = np.random.default_rng(0)
    shapes = released_shapes()
    return {name: rng.uniform(0.1, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def layout(monkeypatch):
    """DiffusionDepth as transformers might have named it: everything under `model.`."""

    def infer(shapes, config):
        if not all(name.startswith("model.") for name in shapes):
            return None
        if config.get("max_depth", 1) < 0:
            raise ValueError("max_depth is negative in config.json")
        found = diffusion_depth.infer({name[6:]: shape for name, shape in shapes.items()})
        return found and dataclasses.replace(found, max_depth=config.get("max_depth"))

    def theirs(config):
        if config.encoder.name == "swin":
            raise ConfigError("transformers has none on swin")
        return rules.prefix(diffusion_depth.rules(config), "model.")

    def describe(config):
        if config.codec.latent_channels > 9:
            raise ValueError("latent_channels are more than 9")
        return {"max_depth": config.max_depth}

    layout = TransformersLayout(
        model_type="diffusion_depth",
        infer=infer,
        rules=theirs,
        describe=describe,
        preprocessor=lambda config: {"size": None},
    )
    monkeypatch.setattr(diffusion_depth, "TRANSFORMERS", layout)
    monkeypatch.setattr(diffusion_depth, "UNDETERMINED", {"max_depth": (10.0, 80.0)})
    signature = (r"(model\.)?depth_backbone\..+",)
    monkeypatch.setitem(registry.SIGNATURES["network"], "diffusion_depth", signature)
