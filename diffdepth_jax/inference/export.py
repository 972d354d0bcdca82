"""Exports a model with its published PyTorch names, or in transformers' layout."""

import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffdepth_jax import atomic
from diffdepth_jax import config as config_lib
from diffdepth_jax.errors import ConfigError, naming_file
from diffdepth_jax.inference import recalibration
from diffdepth_jax.inference.load import load
from diffdepth_jax.inference.model import DepthModel
from diffdepth_jax.models.networks import network
from diffdepth_jax.models.networks.network import Published, TransformersLayout
from diffdepth_jax.weights import files, hugging_face, rules

Layout = Literal["authors", "transformers"]

_SUFFIX = ".safetensors"


def check_target(
    path: str | os.PathLike, checkpoint: str | os.PathLike, layout: Layout = "authors"
) -> None:
    """Rejects paths that `export` should not write a checkpoint's weights to.

    Raises:
        ConfigError: if the layout is unknown; if the path does not end in `.safetensors` or is the
            checkpoint itself; for transformers' layout, if it is not a new or empty directory.
        FileError: if the system rejects the path.
    """
    path, checkpoint = Path(path).expanduser(), Path(checkpoint).expanduser()
    _check_path(path, layout)
    with naming_file(path, "written"):
        same = path.exists() and checkpoint.exists() and path.samefile(checkpoint)
    if same:
        raise ConfigError(f"{path} is the checkpoint itself: choose another output file")


def _check_path(path: Path, layout: Layout) -> None:
    if layout not in typing.get_args(Layout):
        known = " or ".join(map(repr, typing.get_args(Layout)))
        raise ConfigError(f"layout is {layout!r}; it must be {known}")
    if layout == "authors" and path.suffix != _SUFFIX:
        raise ConfigError(f"{path} must end in {_SUFFIX}, the format that is written")
    with naming_file(path, "written"):
        is_taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if layout == "transformers" and is_taken:
        raise ConfigError(
            f"{path} already exists: transformers' layout needs a new or empty directory"
        )


def export(model: DepthModel, path: str | os.PathLike, layout: Layout = "authors") -> list[str]:
    """Writes a model in PyTorch's layout; `load` reads it back.

    "authors" is a safetensors file with the published names. Recalibrated statistics are stored in
    its metadata, which PyTorch ignores: the entry `recalibrated` is JSON, {number of steps: {name:
    values}}. "transformers" is a directory with `config.json`, `model.safetensors` and
    `preprocessor_config.json`, for `from_pretrained`.

    Args:
        model: a model of a published network.
        path: a file ending in `.safetensors`, or a new or empty directory.
        layout: see above.

    Returns:
        A line for each config field that the file does not store, with its value and the value that
        `load` assumes.

    Raises:
        ConfigError: for an unknown layout, a file that does not end in `.safetensors`, a directory
            that is not empty, an unpublished network, or a network that transformers does not
            support.
        FileError: if it cannot be written.
        WeightsError: if the layout has no names for the model's weights.
    """
    path = Path(path).expanduser()
    _check_path(path, layout)
    file = network.of(model.config)
    if layout == "transformers":
        if file.TRANSFORMERS is None:
            raise ConfigError(
                f"transformers has no network {model.config.name!r}: export it with its authors' "
                "names (layout='authors')"
            )
        _write_transformers(model, path, file.TRANSFORMERS)
    else:
        _write_authors(model, path)
    return config_lib.differences(
        config_lib.to_mapping(model.config), config_lib.to_mapping(load(path).config)
    )


def _write_authors(model: DepthModel, path: Path) -> None:
    if not isinstance(model.config, Published):
        raise ConfigError(
            f"the network {model.config.name!r} is not published, so there are no names to export "
            "its weights with. Use its run directory, which diffdepth_jax.load reads"
        )
    file = network.of(model.config)
    table = file.rules(model.config)
    metadata = {"args": json.dumps(file.arguments(model.config))}
    if model.recalibrated:
        found = {
            steps: _named({"batch_stats": part}, table)
            for steps, part in model.recalibrated.items()
        }
        metadata["recalibrated"] = recalibration.to_text(found)
    files.write_safetensors(path, _named(model.variables, table), metadata)


def _write_transformers(model: DepthModel, path: Path, layout: TransformersLayout) -> None:
    try:
        texts = {
            hugging_face.CONFIG: {
                "model_type": layout.model_type,
                **layout.describe(model.config),
            },
            hugging_face.PREPROCESSOR: layout.preprocessor(model.config),
        }
        table = layout.rules(model.config)
    except ValueError as error:  # transformers' network lacks an option
        raise ConfigError(
            f"transformers does not support this {model.config.name!r}: {error}"
        ) from error
    state_dict = _named(model.variables, table)

    def write(directory: Path) -> None:
        # Required by transformers.
        metadata = {"format": "pt"}
        files.write_safetensors(directory / hugging_face.WEIGHTS, state_dict, metadata)
        for name, content in texts.items():
            atomic.write_text(directory / name, json.dumps(content, indent=2) + "\n")

    atomic.write_directory(path, write)


def _named(variables: Mapping[str, Any], table: rules.Rules) -> dict[str, np.ndarray]:
    return rules.export(variables, table, rules.names(variables, table))
