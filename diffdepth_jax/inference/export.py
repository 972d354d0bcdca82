"""A model as a file under its publication's names, or as transformers stores it."""

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
    """Refuses a path that `export` should not write a checkpoint's weights to.

    Raises:
        ConfigError: for a layout that is none; for another ending than `.safetensors`, or for the
            checkpoint itself; in transformers' layout for what is not a new or empty directory.
        FileError: for a path that the system refuses.
    """
    path, checkpoint = Path(path).expanduser(), Path(checkpoint).expanduser()
    _check_layout(path, layout)
    if layout == "authors" and path.suffix != _SUFFIX:
        raise ConfigError(f"{path} must end in {_SUFFIX}: that is the format that is written")
    with naming_file(path, "written"):
        same = path.exists() and checkpoint.exists() and path.samefile(checkpoint)
    if same:
        raise ConfigError(f"{path} is the checkpoint itself: choose another file for the result")


def _check_layout(path: Path, layout: Layout) -> None:
    if layout not in typing.get_args(Layout):
        known = " or ".join(map(repr, typing.get_args(Layout)))
        raise ConfigError(f"layout is {layout!r}; it must be {known}")
    with naming_file(path, "written"):
        is_taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if layout == "transformers" and is_taken:
        raise ConfigError(
            f"{path} is there already: transformers' layout goes to a new or empty directory"
        )


def export(model: DepthModel, path: str | os.PathLike, layout: Layout = "authors") -> list[str]:
    """Writes a model in PyTorch's layout; `load` reads it back.

    "authors" is a safetensors file under the publication's names. Recalibrated statistics go into
    its metadata, which PyTorch does not look at: the entry `recalibrated` is JSON, {number of
    steps: {name: values}}. "transformers" is a directory with `config.json`, `model.safetensors`
    and `preprocessor_config.json`, which `from_pretrained` takes.

    Args:
        model: of a network that is published.
        path: a file that ends in `.safetensors`, or a new or empty directory.
        layout: see above.

    Returns:
        The fields of the config that the file does not tell, as lines `path: value -> what load
        takes it for`.

    Raises:
        ConfigError: for a path or layout that `check_target` refuses, a network that is not
            published, or one that transformers does not have.
        FileError: if it cannot be written.
        WeightsError: for a model that the layout has no names for.
    """
    path = Path(path).expanduser()
    _check_layout(path, layout)
    file = network.of(model.config)
    if layout == "transformers":
        if file.TRANSFORMERS is None:
            raise ConfigError(
                f"transformers has no network {model.config.name!r}: export it under its authors' "
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
            f"the network {model.config.name!r} is not a published one: there are no names to "
            "export its weights under. Keep its run directory, which diffdepth_jax.load reads"
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
    except ValueError as error:  # transformers' network has no such option
        raise ConfigError(
            f"transformers cannot have this {model.config.name!r}: {error}"
        ) from error
    state_dict = _named(model.variables, table)

    def write(directory: Path) -> None:
        # The entry that transformers looks for.
        metadata = {"format": "pt"}
        files.write_safetensors(directory / hugging_face.WEIGHTS, state_dict, metadata)
        for name, content in texts.items():
            atomic.write_text(directory / name, json.dumps(content, indent=2) + "\n")

    atomic.write_directory(path, write)


def _named(variables: Mapping[str, Any], table: rules.Rules) -> dict[str, np.ndarray]:
    return rules.export(variables, table, rules.names(variables, table))
