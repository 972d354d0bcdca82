"""Shared by the encoders' tests: recorded features, and round trips through weight tables."""

import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.weights.rules import Constant, Derived, Rules, convert, export, names

PREFIX = "depth_backbone."


@dataclass(frozen=True)
class EncoderCase:
    """The encoder's part of a recorded run."""

    run: Any  # GoldenCase of tests/conftest.py
    shapes: dict[str, tuple[int, ...]]

    def features(self, module: ModuleType, config: Any, rules: Rules) -> list[np.ndarray]:
        """Our features of the recorded image with the recorded weights."""
        encoder, image = module.Encoder(config), jnp.asarray(self.run.arrays["image"])
        expected = jax.eval_shape(encoder.init, jax.random.key(0), image)
        state_dict = {name: self.run.state_dict[PREFIX + name] for name in self.shapes}
        variables = convert(state_dict, rules, expected)
        return [np.asarray(array) for array in jax.jit(encoder.apply)(variables, image)]

    def errors(self, features: list[np.ndarray]) -> list[float]:
        """Relative L2 error of each stage."""
        assert len(features) == 4
        return [self.run.error(f"feat{stage}", array) for stage, array in enumerate(features)]

    def check(self, module: ModuleType, config: Any) -> None:
        features = self.features(module, config, module.rules(config))
        assert tuple(array.shape[-1] for array in features) == config.channels
        assert max(self.errors(features)) <= 1e-5


@pytest.fixture
def encoder_case(golden):
    """Reads the encoder's part of a recorded case by its name."""

    def read(name: str) -> EncoderCase:
        run = golden(name)
        shapes = {
            name.removeprefix(PREFIX): tuple(shape)
            for name, shape in run.meta["shapes"].items()
            if name.startswith(PREFIX)
        }
        return EncoderCase(run, shapes)

    return read


@pytest.fixture
def round_trip():
    """Checks that a table converts exactly these weights to an encoder's variables and back.

    Returns what is written, including derived and constant entries, which may differ from what
    was read.
    """

    def check(module: ModuleType, config: Any, shapes: dict[str, tuple[int, ...]]) -> dict:
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        expected = jax.eval_shape(module.Encoder(config).init, jax.random.key(0), image)
        rng = np.random.default_rng(0)
        state_dict = {
            name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
        }
        table = module.rules(config)
        variables = convert(state_dict, table, expected)
        written = export(variables, table, state_dict)
        derived = [row.pattern for row in table if isinstance(row, Derived | Constant)]
        for name, array in written.items():
            if any(re.fullmatch(pattern, name) for pattern in derived):
                assert array.shape == shapes[name]
            else:
                np.testing.assert_array_equal(array, state_dict[name], err_msg=name)
        assert sorted(names(variables, table)) == sorted(written)
        return written

    return check


@pytest.fixture
def random_variables():
    """Positive random variables, without compiling an initialisation."""

    def make(encoder: Any, image: jax.Array) -> dict:
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(encoder.init, jax.random.key(0), image)
        return jax.tree.map(
            lambda leaf: jnp.asarray(rng.uniform(0.0, 0.5, leaf.shape), jnp.float32), shapes
        )

    return make
