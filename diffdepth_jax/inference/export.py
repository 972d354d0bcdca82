"""A model as a file under its publication's names."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffdepth_jax import config as config_lib
from diffdepth_jax.errors import ConfigError, naming_file
from diffdepth_jax.inference import recalibration
from diffdepth_jax.inference.load import load
from diffdepth_jax.inference.model import DepthModel
from diffdepth_jax.models.networks import network
from diffdepth_jax.models.networks.network import Published
from diffdepth_jax.weights import files, rules

_SUFFIX = ".safetensors"


def check_target(path: str | os.PathLike, checkpoint: str | os.PathLike) -> None:
    """Refuses a path that `export` should not write a checkpoint's weights to.

    Raises:
        ConfigError: for another ending than `.safetensors`, or for the checkpoint itself.
        FileError: for a path that the system refuses.
    """
    path, checkpoint = Path(path).expanduser(), Path(checkpoint).expanduser()
    if path.suffix != _SUFFIX:
        raise ConfigError(f"{path} must end in {_SUFFIX}: that is the format that is written")
    with naming_file(path, "written"):
        same = path.exists() and checkpoint.exists() and path.samefile(checkpoint)
    if same:
        raise ConfigError(f"{path} is the checkpoint itself: choose another file for the result")


def export(model: DepthModel, path: str | os.PathLike) -> list[str]:
    """Writes a model as safetensors under its publication's PyTorch names; `load` reads it back.

    Recalibrated statistics go into the metadata, which PyTorch does not look at: the entry
    `recalibrated` is JSON, {number of steps: {name: values}}.

    Returns:
        The fields of the config that the file does not tell, as lines `path: value -> what load
        takes it for`.

    Raises:
        ConfigError: for a network that is nobody's publication.
        WeightsError: for a model that the publication has no names for.
    """
    if not isinstance(model.config, Published):
        raise ConfigError(
            f"the network {model.config.name!r} is nobody's publication: there are no names to "
            "export its weights under. Keep its run directory, which diffdepth_jax.load reads"
        )
    file = network.of(model.config)
    table = file.rules(model.config)

    def named(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return rules.export(variables, table, rules.names(variables, table))

    metadata = {"args": json.dumps(file.arguments(model.config))}
    if model.recalibrated:
        found = {steps: named({"batch_stats": part}) for steps, part in model.recalibrated.items()}
        metadata["recalibrated"] = recalibration.to_text(found)
    files.write_safetensors(path, named(model.variables), metadata)
    return config_lib.differences(
        config_lib.to_mapping(model.config), config_lib.to_mapping(load(path).config)
    )
