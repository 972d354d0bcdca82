"""Pretrained weights that a run starts from: of the whole network, or of its encoder.

A whole network is opened as `inference.load` opens it, and must be the one of the config.

A file of encoder weights is recognised by the names in it. Every encoder lists in `LAYOUTS` the
sources whose weights it takes; the weights may lie below a common root (`module.`, `backbone.`,
`depth_backbone.`, ...), and entries outside that root belong to other parts of a network.
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

# Fields of a network's config, at any depth, that do not matter outside training, and the number of
# denoising steps, which training may be meant to change.
_OF_TRAINING = (
    "remat",
    "conv_gradient",
    "sampler_form",
    "drop_path_rate",
    "initial_depth",
    "num_inference_steps",
)


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Weights that a run starts from, instead of random ones.

    Attributes:
      encoder: file of encoder weights in any layout that the encoder's file lists.
      network: the whole network's weights: a run, a file or a directory, anything that
        `inference.load` takes. Its config must equal `model`, except for fields that only matter in
        training and the number of denoising steps.
      options: of `network`, what its file name does not say, as keyword arguments of `load`, such
        as {"version": 2} or {"step": "best"}; None leaves one out.
    """

    encoder: str | None = None
    network: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.encoder is not None and self.network is not None:
            raise ValueError(
                f"encoder is {self.encoder!r} and network {self.network!r}: give only one, as the "
                "network has an encoder"
            )
        check_options(self.options, self.network, "network")


def check_options(options: Mapping[str, Any], path: str | None, field: str) -> None:
    """Raises ValueError for options of `inference.load` where nothing is loaded."""
    if path is None and any(value is not None for value in options.values()):
        raise ValueError(f"options are {dict(options)}, but no {field} is named")


def load(config: InitConfig, model_config: NetworkConfig) -> dict[str, Any]:
    """The loaded part of a network's variables, for `overlay`; empty if nothing is configured.

    Raises:
      FileError: if there is no such file, or it cannot be read.
      ConfigError: if it does not fit the model; names what to change.
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
    """The variables of a network that must match a config.

    Args:
      path, options: see `InitConfig`.
      model_config: the network's, from the experiment.

    Raises:
      FileError: as `inference.load`.
      ConfigError: if the weights are of no known network, or of another config; lists what differs
        and what to change.
    """
    loaded = open_network(path, options, "config.init.network")
    if loaded.config.name != model_config.name:
        raise ConfigError(
            f"config.init.network: {path} holds a {loaded.config.name!r}, but config.model is a "
            f"{model_config.name!r}: change config.model.name, or name other weights"
        )
    lines = config_lib.differences(
        _outside_training(config_lib.to_mapping(model_config)),
        _outside_training(config_lib.to_mapping(loaded.config)),
        "config.model",
    )
    if lines:
        raise ConfigError(
            f"config.init.network: {path} holds another {model_config.name!r} than config.model "
            f"describes; to start from it, change {', '.join(lines)}"
        )
    return dict(loaded.variables_at())


def open_network(
    path: str, options: Mapping[str, Any], field: str, dtype: Any = jnp.float32
) -> inference.DepthModel:
    """`inference.load` of what a config names.

    Args:
      path, options: see `InitConfig`.
      field: of the config, that names the path, for errors.
      dtype: as for `inference.load`.

    Raises:
      FileError: if there is no such file, or it cannot be read.
      ConfigError, WeightsError: if the options do not fit, or the weights are of no known network.
    """
    where = f"{field.rpartition('.')[0]}.options"
    if taken := sorted({"source", "dtype"} & options.keys()):
        raise ConfigError(f"{where} has {', '.join(taken)}, which the run decides: leave it out")
    options = {name: value for name, value in options.items() if value is not None}
    try:
        return inference.load(path, dtype=dtype, **options)
    except FileError as error:
        raise type(error)(f"{field}: {error}") from error
    except (ConfigError, WeightsError) as error:
        raise type(error)(f"{field}: {error} (arguments of load belong into {where})") from error


def _outside_training(mapping: Any) -> Any:
    """A config's mapping without the fields that do not matter outside training."""
    if not isinstance(mapping, Mapping):
        return mapping
    return {
        name: _outside_training(value)
        for name, value in mapping.items()
        if name not in _OF_TRAINING
    }


def overlay(variables: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` with the leaves of `loaded`, a part of the same tree, replaced."""
    return {
        name: value
        if name not in loaded
        else overlay(value, loaded[name])
        if isinstance(value, Mapping)
        else loaded[name]
        for name, value in variables.items()
    }


def load_encoder(path: str | os.PathLike[str], config: Any) -> dict[str, Any]:
    """Variables of an encoder from a file of pretrained weights.

    Args:
      path: `.pt`, `.pth` or `.safetensors`.
      config: of the encoder.

    Returns:
      {"params", "batch_stats"} of the encoder alone, as NumPy; without leaves that such weights
      lack according to the layout's table.

    Raises:
      FileNotFoundError: if there is no such file.
      WeightsError: if it is of no known layout or of several, or of another shape than the config;
        one error names all differences.
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
                match.found, **{name: getattr(config, name) for name in match.layout.untold}
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
    """The one layout of an encoder, and the one root, that the names match."""
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
        f"these {len(shapes)} weights ({sample}) are in no layout known for the encoder "
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
