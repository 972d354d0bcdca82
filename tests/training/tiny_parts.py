"""A network, an objective and a data source that cost almost nothing, under the name `tiny`.

A separate module because tests also train in processes without fixtures."""

import dataclasses
import sys
import types
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffdepth_jax import registry
from diffdepth_jax.errors import DataError
from diffdepth_jax.models.networks.network import NetworkConfig
from diffdepth_jax.typing import InputSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyConfig(NetworkConfig):
    name: Literal["tiny"] = "tiny"
    features: int = 4


class Network(nn.Module):
    """Two convolutions with BatchNorm in between; noise can be added."""

    config: TinyConfig

    @nn.compact
    def __call__(self, image, noise=0.0, train=False):
        hidden = nn.Conv(self.config.features, (3, 3))(image)
        hidden = nn.relu(nn.BatchNorm(use_running_average=not train)(hidden))
        return jnp.exp(nn.Conv(1, (1, 1))(hidden) + 0.1 * noise)

    def init_variables(self, key):
        return self.init(key, jnp.zeros((1, 8, 8, 3)))


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    name: Literal["tiny"] = "tiny"
    weight: float = 1.0


class Aux(NamedTuple):
    scalars: dict
    batch_stats: dict


def build_objective(config, model, num_steps):
    def loss(params, batch_stats, batch, key, step):
        noise = jax.random.normal(key, batch["depth"].shape)
        variables = {"params": params, "batch_stats": batch_stats}
        prediction, updated = model.apply(
            variables, batch["image"], noise, train=True, mutable=["batch_stats"]
        )
        error = jnp.where(batch["valid_mask"], jnp.abs(prediction - batch["depth"]), 0).mean()
        spoilt = 0 * batch["intrinsics"].sum()  # finite unless `nan_image` is in the batch
        return config.weight * error + spoilt, Aux({"l1": error}, updated["batch_stats"])

    return loss


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    name: Literal["tiny"] = "tiny"
    count: int = 5
    nan_image: int | None = None
    pairs: bool = False
    broken: tuple[int, ...] = ()
    check_files: bool = True


class Source:
    """Random frames; the intrinsics of `nan_image` are NaN, frames in `broken` cannot be read.
    With `pairs`, the clean image is the image upside down."""

    def __init__(self, config):
        self.config = config

    def __len__(self):
        return self.config.count

    def __getitem__(self, index):
        if index in self.config.broken:
            raise DataError(f"frame {index} is broken")
        generator = np.random.default_rng(index)
        image = generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        pair = {"clean_image": image[::-1]} if self.config.pairs else {}
        return pair | {
            "image": image,
            "depth": generator.uniform(1, 9, (12, 16)).astype(np.float32),
            "intrinsics": np.full((3, 3), np.nan if index == self.config.nan_image else 1.0, "f4"),
            "id": f"frame{index}",
            "condition": "none",
        }


MODULES = {
    "network": types.SimpleNamespace(
        Config=TinyConfig,
        Network=Network,
        VARIANTS={},
        INPUT=InputSpec(),
        OUTPUT="metric_depth",
        FILES={},
        UNDETERMINED={},
        TRANSFORMERS=None,
        build=lambda config, dtype=None, frozen=(): Network(config),
        rules=lambda config: (),
        infer=lambda shapes: None,
        with_arguments=lambda config, arguments: config,
        arguments=lambda config: {},
    ),
    "objective": types.SimpleNamespace(Config=ObjectiveConfig, build=build_objective),
    "source": types.SimpleNamespace(Config=SourceConfig, build=Source),
}

EXPERIMENT = {
    "num_steps": 6,
    "batch_size": 2,
    "model": {"name": "tiny"},
    "objective": {"name": "tiny"},
    "optimizer": {"learning_rate": 1e-2},
    "data": {
        "train": {"source": {"name": "tiny"}, "augmentation": {"crop": (8, 8)}},
        "evaluation": {"name": "tiny", "count": 3},
    },
    "evaluation": {"protocol": "release"},
    "checkpoint": {"every_steps": 3},
    "logging": {"every_steps": 2},
}


def register(setitem=dict.__setitem__):
    """Registers the parts, with `monkeypatch.setitem` only until the test ends."""
    for kind, module in MODULES.items():
        setitem(sys.modules, f"tiny_{kind}", module)
        setitem(registry.MODULES[kind], "tiny", f"tiny_{kind}")
