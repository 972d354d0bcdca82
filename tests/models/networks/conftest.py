"""Shared by the networks' tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.inference import DepthModel
from diffdepth_jax.models.networks import network
from diffdepth_jax.models.networks.network import expected_variables


@pytest.fixture
def random_network():
    """Builds a network from a config, with random weights scaled to keep the size of features."""

    def make(config, seed: int = 0) -> DepthModel:
        model = network.of(config).build(config)
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            kind = path[-1].key
            scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.2
            array = scale * rng.standard_normal(leaf.shape)
            if kind in ("scale", "var"):
                array = 1 + np.abs(array)
            return jnp.asarray(array, jnp.float32)

        variables = jax.tree_util.tree_map_with_path(draw, expected_variables(model))
        return DepthModel(model, variables, config)

    return make
