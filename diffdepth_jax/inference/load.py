"""Any checkpoint to a `DepthModel`.

The architecture comes from the checkpoint itself. Arrays are all that is read: no optimiser state,
no data pipeline, no PyTorch.
"""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffdepth_jax import atomic, registry
from diffdepth_jax import config as config_lib
from diffdepth_jax.errors import ConfigError, MissingFileError, WeightsError, naming_file
from diffdepth_jax.inference import recalibration
from diffdepth_jax.inference.model import DepthModel
from diffdepth_jax.models.networks.network import Network, NetworkConfig
from diffdepth_jax.weights import files, orbax, rules, text

_RECALIBRATED = "recalibrated.json"  # in a checkpoint's directory, beside `state`


def load(
    source: str | os.PathLike | Mapping[str, Any],
    network: str | None = None,
    *,
    step: orbax.Step | None = None,
    dtype: Any = jnp.float32,
    **fields: Any,
) -> DepthModel:
    """Rebuilds a model with its weights from what a checkpoint says.

    Args:
        source: a run directory or checkpoint directory of ours; an official `.pt`/`.pth` file (read
          without PyTorch, nothing in it is executed); a `.safetensors` file; or a state dict, names
          to arrays in PyTorch's layout.
        network: the registered name of the network that the weights belong to. Needed only where
          several have the same names and shapes and the name of the file does not tell either.
        step: which of a run's checkpoints; the latest when None; "best" for the one that the
          run's evaluations found best.
        dtype: of the convolutions and matrix products, `jnp.bfloat16` for speed on accelerators;
            parameters, the norms' statistics, latents and depth stay float32.
        **fields: of the network's config, over what the checkpoint and the name of the file say;
            such as `max_depth=80.0`, which weights do not tell.

    Raises:
        FileError: if the file or directory does not exist (`MissingFileError`) or cannot be read.
        WeightsError: if the weights belong to no known network or to several, or do not fit it;
            says which and why.
        ConfigError: for a network that does not exist, or fields that its config does not have.
    """
    if isinstance(source, Mapping):
        return _from_state_dict(source, {}, "the given state dict", network, fields, dtype)
    path = Path(source).expanduser()
    with naming_file(path, "read"):
        if not path.exists():
            raise MissingFileError(
                f"{path} does not exist; give a run directory, a .pt or a .safetensors file"
            )
        is_run = path.is_dir()
    if is_run:
        return _from_run(path, step, network, fields, dtype)
    if step is not None:
        raise ConfigError(f"step={step} was asked of the single file {path}; it has no steps")
    contents = files.read(path)
    return _from_state_dict(
        contents.state_dict, contents.metadata, str(path), network, fields, dtype, path.stem
    )


def _from_run(
    path: Path,
    step: orbax.Step | None,
    network: str | None,
    fields: Mapping[str, Any],
    dtype: Any,
) -> DepthModel:
    directory = orbax.checkpoint_directory(path, step=step)
    contents = orbax.read_arrays(directory)
    try:
        config = config_lib.chosen(
            "network", contents.config["model"], resolve=registry.module, path="config.model"
        )
    except ConfigError as error:
        raise WeightsError(f"{directory} has a config that cannot be read: {error}") from error
    if network not in (None, config.name):
        raise ConfigError(f"{path} is a run of the network {config.name!r}, not of {network!r}")
    config = _with_fields(config, fields)
    model = registry.module("network", config.name).build(config, dtype)
    # Where an average of the parameters was kept, it is what is evaluated.
    params = contents.ema_params or contents.params
    variables = {"params": params, "batch_stats": contents.batch_stats}
    expected = expected_variables(model)
    rules.check(variables, expected, f"{path} cannot be loaded")
    recalibrated = {}
    if (file := directory / _RECALIBRATED).exists():
        try:
            with naming_file(file, "read"):
                content = file.read_text(errors="replace")
            recalibrated = {
                steps: traverse_util.unflatten_dict(leaves, sep="/")
                for steps, leaves in recalibration.from_text(content).items()
            }
            for statistics in recalibrated.values():
                changed = recalibration.replaced(variables, statistics)
                rules.check(
                    changed,
                    expected,
                    "statistics that do not fit, so compute them again with tools/recalibrate.py",
                )
        except WeightsError as error:
            raise WeightsError(f"{file} has {error}") from error
    variables = jax.tree.map(jnp.asarray, variables)
    return DepthModel(model, variables, config, recalibrated)


def _from_state_dict(
    state_dict: Mapping[str, Any],
    metadata: Mapping[str, Any],
    name: str,
    network: str | None,
    fields: Mapping[str, Any],
    dtype: Any,
    stem: str = "",
) -> DepthModel:
    state_dict = {key: np.asarray(value) for key, value in state_dict.items()}
    try:
        file, from_name = _recognised(state_dict, stem, network)
        given = {**from_name, **fields}
        config = _inferred(file, state_dict, _arguments(metadata, name))
        config = _with_fields(config, given)
        _check_untold(file, config, given)
        model = file.build(config, dtype)
        table, expected = file.rules(config), expected_variables(model)
        variables = rules.convert(state_dict, table, expected, f"The weights in {name}")
        found = recalibration.from_text(metadata.get("recalibrated", "{}"))
        part = (*table, rules.Fresh(".*", "statistics of the decoder only"))
        recalibrated = {
            steps: recalibration.pruned(rules.convert(arrays, part, expected)["batch_stats"])
            for steps, arrays in found.items()
        }
    except WeightsError as error:
        raise WeightsError(f"{name} cannot be loaded: {error}") from error
    variables = jax.tree.map(jnp.asarray, variables)
    return DepthModel(model, variables, config, recalibrated)


def _recognised(
    state_dict: Mapping[str, Any], stem: str, network: str | None
) -> tuple[Network, Mapping[str, Any]]:
    """The file of the weights' network, and the fields that a published file name stands for."""
    candidates = (network,) if network else registry.matching("network", state_dict)
    named = {}
    for candidate in candidates:
        for pattern, fields in registry.module("network", candidate).FILES.items():
            if re.fullmatch(pattern, stem):
                named.setdefault(candidate, fields)
    if len(candidates) > 1 and len(named) == 1:
        candidates = tuple(named)
    if len(candidates) == 1:
        (candidate,) = candidates
        return registry.module("network", candidate), named.get(candidate, {})
    sample = ", ".join(list(state_dict)[:4]) + (", ..." if len(state_dict) > 4 else "")
    if candidates:
        choices = " or ".join(f"network={candidate!r}" for candidate in candidates)
        raise WeightsError(
            f"the weights ({sample}) fit several networks, and the name of the file does not say "
            f"which: load(..., {choices})"
        )
    known = ", ".join(registry.SIGNATURES["network"])
    raise WeightsError(
        f"these {len(state_dict)} weights ({sample}) belong to no network known here. Known "
        f"networks: {known}. Give the whole network's state dict, not an encoder alone."
    )


def _inferred(
    file: Network, state_dict: Mapping[str, np.ndarray], arguments: Mapping[str, Any]
) -> NetworkConfig:
    """The config that follows from the weights and the training script's arguments."""
    try:
        config = file.infer({key: value.shape for key, value in state_dict.items()})
        if config is not None:
            return file.with_arguments(config, arguments)
    except ValueError as error:  # A config of these shapes, or of these numbers, cannot be.
        raise WeightsError(str(error)) from error
    raise WeightsError("its names and shapes fit no architecture of this network")


def _check_untold(file: Network, config: NetworkConfig, given: Mapping[str, Any]) -> None:
    for field, values in file.UNTOLD.items():
        if field not in given:
            choices = " or ".join(f"{field}={value!r}" for value in values)
            raise WeightsError(
                f"neither the weights of the network {config.name!r} nor the name of the file "
                f"tells its {field}: load(..., {choices})"
            )


def _arguments(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The training script's arguments, where a checkpoint has them in the form of a mapping."""
    arguments = metadata.get("args") or {}
    # A safetensors file's metadata are text; other text, such as a command line, says nothing.
    if isinstance(arguments, str) and arguments.lstrip().startswith("{"):
        arguments = text.parse_json(arguments, "the entry args of its metadata")
    if not isinstance(arguments, Mapping):
        warnings.warn(
            f"{name}: the checkpoint's args are a {type(arguments).__name__}, no mapping of names "
            "to values: the numbers of steps and max_depth are the defaults",
            stacklevel=4,
        )
        return {}
    return arguments


def _with_fields(config: NetworkConfig, fields: Mapping[str, Any]) -> NetworkConfig:
    return config_lib.updated(config, fields, resolve=registry.module, path=config.name)


def save_recalibrated(model: DepthModel, directory: str | os.PathLike) -> None:
    """Writes recalibrated statistics beside the weights of our own that they were found with.

    Args:
        model: with `recalibrated`, as `DepthModel.recalibrate` returns it.
        directory: `checkpoints/<step>` of the run that the model was loaded from, as
            `weights.orbax.checkpoint_directory` finds it; `load` reads them there.
    """
    found = {
        steps: traverse_util.flatten_dict(part, sep="/")
        for steps, part in model.recalibrated.items()
    }
    atomic.write_text(Path(directory) / _RECALIBRATED, recalibration.to_text(found) + "\n")


def expected_variables(model: nn.Module) -> Mapping[str, Any]:
    """Shapes and types of a module's variables, without computing any."""
    return jax.eval_shape(model.init_variables, jax.random.key(0))
