"""Pretrained weights to start from: the whole network's or its encoder's.

A whole network is loaded with `inference.load` and must match the config.

A file of encoder weights is recognised by the names in it. Every encoder lists the supported
sources of weights in `LAYOUTS`; names may share a root (`module.`, `backbone.`, `depth_backbone.`,
...), and entries outside that root belong to other parts of a network.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffdepth_jax import config as config_lib
from diffdepth_jax import inference, registry
from diffdepth_jax.errors import ConfigError, FileError, WeightsError
from diffdepth_jax.models.networks.network import NetworkConfig
from diffdepth_jax.models.tables import Layout
from diffdepth_jax.weights import files
from diffdepth_jax.weights.rules import Skip, convert, prefix

Shapes = Mapping[str, tuple[int, ...]]

# Fields of a network's config, at any depth, that only matter in training, and those of the
# sampler, which training may change on purpose.
_OF_TRAINING = (
    "remat",
    "conv_gradient",
    "sampler_form",
    "drop_path_rate",
    "initial_depth",
    "num_inference_steps",
    "timestep_spacing",
    "clip_sample",
    "eta",
)


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Weights to start from instead of random ones.

    Attributes:
        encoder: file of encoder weights in any layout that the encoder supports.
        network: the whole network's weights: a run, a file or a directory, anything that
            `inference.load` accepts. Its config must equal `model`, except for fields that only
            matter in training, and the sampler's steps (their number and spacing, clipping and
            eta).
        options: keyword arguments of `load` for `network`, for what its file name does not say,
            such as {"version": 2} or {"step": "best"}; None values are ignored.
    """

    encoder: str | None = None
    network: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.encoder is not None and self.network is not None:
            raise ValueError(
                f"encoder is {self.encoder!r} and network is {self.network!r}: set only one, as "
                "the network includes an encoder"
            )
        check_options(self.options, self.network, "network")


def check_options(options: Mapping[str, Any], path: str | None, field: str) -> None:
    """Raises ValueError for options of `inference.load` if nothing is loaded."""
    if path is None and any(value is not None for value in options.values()):
        raise ValueError(f"options are {dict(options)}, but {field} is not set")


def load(config: InitConfig, model_config: NetworkConfig) -> dict[str, Any]:
    """The loaded part of a network's variables, for `overlay`; empty if none is configured.

    Raises:
        FileError: if the file does not exist or cannot be read.
        ConfigError: if it does not fit the model; says what to change.
    """
    if config.network is not None:
        return load_network(config.network, config.options, model_config)
    if config.encoder is None:
        return {}
    try:
        variables = load_encoder(config.encoder, model_config.encoder)  # type: ignore[attr-defined]
    except WeightsError as error:
        raise ConfigError(f"config.init.encoder: {error}") from error
    return {collection: {"encoder": tree} for collection, tree in variables.items()}


def load_network(
    path: str, options: Mapping[str, Any], model_config: NetworkConfig
) -> dict[str, Any]:
    """Loads the variables of a network that must match a config.

    Args:
        path, options: see `InitConfig`.
        model_config: the experiment's network config.

    Raises:
        FileError: as in `inference.load`.
        ConfigError: if the network is unknown or has a different config; lists the differences and
            what to change.
    """
    loaded = open_network(path, options, "config.init.network")
    if loaded.config.name != model_config.name:
        raise ConfigError(
            f"config.init.network: {path} holds a {loaded.config.name!r}, but config.model is a "
            f"{model_config.name!r}: change config.model.name, or use other weights"
        )
    lines = config_lib.differences(
        _outside_training(config_lib.to_mapping(model_config)),
        _outside_training(config_lib.to_mapping(loaded.config)),
        "config.model",
    )
    if lines:
        raise ConfigError(
            f"config.init.network: {path} holds a {model_config.name!r} that differs from "
            f"config.model; to start from it, change {', '.join(lines)}"
        )
    return dict(loaded.variables_at())


def open_network(
    path: str, options: Mapping[str, Any], field: str, dtype: Any = jnp.float32
) -> inference.DepthModel:
    """Calls `inference.load` for the weights selected by a config.

    Args:
        path, options: see `InitConfig`.
        field: the config field with the path, for errors.
        dtype: as in `inference.load`.

    Raises:
        FileError: if the file does not exist or cannot be read.
        ConfigError, WeightsError: if the options do not fit, or the network is unknown.
    """
    where = f"{field.rpartition('.')[0]}.options"
    if taken := sorted({"source", "dtype"} & options.keys()):
        raise ConfigError(
            f"{where} has {', '.join(taken)}, which the run sets itself: leave it out"
        )
    options = {name: value for name, value in options.items() if value is not None}
    try:
        return inference.load(path, dtype=dtype, **options)
    except FileError as error:
        raise type(error)(f"{field}: {error}") from error
    except (ConfigError, WeightsError) as error:
        raise type(error)(f"{field}: {error} (set arguments of load in {where})") from error


def _outside_training(mapping: Any) -> Any:
    """A config's mapping without fields that only matter in training."""
    if not isinstance(mapping, Mapping):
        return mapping
    return {
        name: _outside_training(value)
        for name, value in mapping.items()
        if name not in _OF_TRAINING
    }


def overlay(variables: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` with the leaves in `loaded`, a part of the same tree, replaced."""
    return {
        name: value
        if name not in loaded
        else overlay(value, loaded[name])
        if isinstance(value, Mapping)
        else loaded[name]
        for name, value in variables.items()
    }


def load_encoder(path: str | os.PathLike[str], config: Any) -> dict[str, Any]:
    """Loads an encoder's variables from a file of pretrained weights.

    Args:
        path: `.pt`, `.pth` or `.safetensors`.
        config: the encoder's config.

    Returns:
        {"params", "batch_stats"} of only the encoder, as NumPy; without leaves that such weights
        lack according to the layout's table.

    Raises:
        FileNotFoundError: if the file does not exist.
        WeightsError: if its layout is unknown or ambiguous, or its shapes differ from the config;
            one error lists all differences.
    """
    state_dict = files.read(path).state_dict
    shapes = {name: array.shape for name, array in state_dict.items()}
    try:
        match = _find(shapes, config.name)
        table = prefix(match.layout.rules(config), match.root)
        if match.root:
            elsewhere = rf"(?!{re.escape(match.root)}).*"
            table += (Skip(elsewhere, f"not under {match.root}: other parts of a network"),)
        try:
            return convert(state_dict, table, _expected(config), f"The weights in {path}")
        except WeightsError as error:
            found = dataclasses.replace(
                match.found, **{name: getattr(config, name) for name in match.layout.undetermined}
            )
            lines = config_lib.differences(
                config_lib.to_mapping(config),
                config_lib.to_mapping(found),
                "config.model.encoder",
            )
            remedy = f"; to use it, change {', '.join(lines)}" if lines else ""
            raise WeightsError(
                f"weights of {config.name} in {match.name}'s layout{remedy}\n{error}"
            ) from error
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


class _Match(NamedTuple):
    root: str
    name: str
    layout: Layout
    found: Any


def _find(shapes: Shapes, encoder: str) -> _Match:
    """The only layout of an encoder, and the only root, that the names match."""
    matches = _matches(shapes, encoder)
    if len(matches) == 1:
        return matches[0]
    if matches:
        places = ", ".join(f"{match.name} under {match.root!r}" for match in matches)
        raise WeightsError(f"holds several encoders, {places}: save only one of them")
    known = ", ".join(registry.module("encoder", encoder).LAYOUTS)
    sample = ", ".join(list(shapes)[:4]) + (", ..." if len(shapes) > 4 else "")
    others = [name for name in registry.names("encoder") if _matches(shapes, name)]
    hint = f". They are weights of the encoder {others[0]!r}" if others else ""
    raise WeightsError(
        f"these {len(shapes)} weights ({sample}) do not match any known layout of the encoder "
        f"{encoder!r} (known: {known}){hint}"
    )


def _matches(shapes: Shapes, encoder: str) -> list[_Match]:
    roots = {""}
    for name in shapes:
        parts = name.split(".")
        roots |= {".".join(parts[:depth]) + "." for depth in (1, 2, 3) if len(parts) > depth}
    layouts: dict[str, Layout] = registry.module("encoder", encoder).LAYOUTS
    found = []
    for root in sorted(roots):
        below = {name[len(root) :]: s for name, s in shapes.items() if name.startswith(root)}
        for name, layout in layouts.items():
            if (config := layout.infer(below)) is not None:
                found.append(_Match(root, name, layout, config))
    return found


def _expected(config: Any) -> Mapping[str, Any]:
    """Shapes and types of an encoder's variables, without computing any."""
    encoder = registry.module("encoder", config.name).Encoder(config)
    side = 2 * max(config.reductions)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(encoder.init, jax.random.key(0), image)
