"""Directories written by Hugging Face's transformers: weights and a `config.json`."""

import os
import re
from pathlib import Path
from typing import Any

from diffdepth_jax.errors import ConfigError, WeightsError, naming_file
from diffdepth_jax.weights import files
from diffdepth_jax.weights.files import WeightsFile
from diffdepth_jax.weights.text import parse_json, shown

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = "model.safetensors"
_INDEX = ".index.json"  # for weights in several files: {"weight_map": {name: file}}
# In the order in which transformers looks for them.
_WEIGHTS = (WEIGHTS, WEIGHTS + _INDEX, "pytorch_model.bin", "pytorch_model.bin" + _INDEX)
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def weights_in(directory: str | os.PathLike[str]) -> Path | None:
    """A directory's weights file or index; None if there are no weights.

    Raises:
        FileError: if the directory cannot be read.
        ConfigError: if it has several weights files, none of them named as in transformers.
    """
    directory = Path(directory)
    with naming_file(directory, "read"):
        for name in _WEIGHTS:
            if (directory / name).is_file():
                return directory / name
        others = sorted(path for path in directory.iterdir() if path.suffix in _ENDINGS)
    if len(others) > 1:
        names = ", ".join(shown(path.name, 80) for path in others[:8])
        raise ConfigError(f"{directory} has {len(others)} weights files: choose one ({names})")
    return others[0] if others else None


def read(path: str | os.PathLike[str]) -> WeightsFile:
    """Reads a weights file or, for an index, all files that it names.

    Raises:
        MissingFileError, FileError, WeightsError: as in `files.read`; also if an index names a file
            outside its directory, or an entry that the file does not have.
    """
    path = Path(path)
    if not path.name.endswith(_INDEX):
        return files.read(path)
    with naming_file(path, "read"):
        content = path.read_text(errors="replace")
    index = parse_json(content, str(path))
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(at, str) for at in places.values()):
        raise WeightsError(
            f"{path} is not a weights index: it has no weight_map from names to files"
        )
    state_dict: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        if not re.fullmatch(r"[^/\\]+", name) or name in (".", ".."):
            raise WeightsError(
                f"{path} names the file {shown(name, 80)!r}, which is not in the same folder"
            )
        part = files.read(path.parent / name).state_dict
        missing = [key for key, at in places.items() if at == name and key not in part]
        if missing:
            raise WeightsError(
                f"{path.parent / name} lacks {len(missing)} entries that {path.name} lists, such "
                f"as {shown(missing[0], 80)!r}; copy both again"
            )
        state_dict |= part
    return WeightsFile(state_dict, {})


def config_beside(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `config.json` next to a weights file; empty if there is none for a model.

    Raises:
        FileError: if it cannot be read.
        WeightsError: if it is not valid JSON.
    """
    file = Path(path).with_name(CONFIG)
    with naming_file(file, "read"):
        if not file.is_file():
            return {}
        content = file.read_text(errors="replace")
    config = parse_json(content, str(file))
    known = isinstance(config, dict) and isinstance(config.get("model_type"), str)
    return config if known else {}
