"""What the encoders' tests share: recorded features, and tables of weights there and back."""

import importlib.util
import json
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.weights.rules import Derived, Rules, convert, export, names

PREFIX = "depth_backbone."


@dataclass(frozen=True)
class EncoderCase:
    """A recorded run of the published encoder."""

    arrays: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    state_dict: dict[str, np.ndarray]

    def features(self, module: ModuleType, config: Any, rules: Rules) -> list[np.ndarray]:
        """Our features of the recorded image with the recorded weights."""
        encoder = module.Encoder(config)
        image = jnp.asarray(self.arrays["image"].transpose(0, 2, 3, 1))
        expected = jax.eval_shape(encoder.init, jax.random.key(0), image)
        variables = convert(self.state_dict, rules, expected)
        return [np.asarray(array) for array in jax.jit(encoder.apply)(variables, image)]

    def errors(self, features: list[np.ndarray]) -> list[float]:
        """Relative L2 error of each stage."""
        return [
            float(np.linalg.norm(array.transpose(0, 3, 1, 2) - recorded) / np.linalg.norm(recorded))
            for array, recorded in zip(
                features, [self.arrays[f"feat{stage}"] for stage in range(4)], strict=True
            )
        ]

    def check(self, module: ModuleType, config: Any) -> None:
        features = self.features(module, config, module.rules(config))
        assert tuple(array.shape[-1] for array in features) == config.channels
        assert max(self.errors(features)) <= 1e-5


@pytest.fixture
def encoder_case(shared):
    """Reads the encoder's part of a recorded case by its name."""
    spec = importlib.util.spec_from_file_location("golden_check", shared / "golden" / "check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)

    def read(name: str) -> EncoderCase:
        with np.load(shared / "golden" / f"{name}.npz") as file:
            shapes = json.loads(str(file["meta"]))["shapes"]
            names = ("image", "feat0", "feat1", "feat2", "feat3")
            arrays = {entry: file[entry] for entry in names}
        shapes = {name: tuple(shape) for name, shape in shapes.items() if name.startswith(PREFIX)}
        return EncoderCase(
            arrays,
            {name.removeprefix(PREFIX): shape for name, shape in shapes.items()},
            {name.removeprefix(PREFIX): array for name, array in check.state_dict(shapes).items()},
        )

    return read


@pytest.fixture
def round_trip():
    """Checks that a table carries exactly these weights to an encoder's variables and back.

    Returns the written ones, among them the derived, which need not be what was read.
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
        derived = [row.pattern for row in table if isinstance(row, Derived)]
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
    """Positive random variables, without the compilation of an initialisation."""

    def make(encoder: Any, image: jax.Array) -> dict:
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(encoder.init, jax.random.key(0), image)
        return jax.tree.map(
            lambda leaf: jnp.asarray(rng.uniform(0.0, 0.5, leaf.shape), jnp.float32), shapes
        )

    return make
