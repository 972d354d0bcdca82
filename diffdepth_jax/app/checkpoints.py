"""Checkpoints by name; a few of them stay loaded."""

import collections
from collections.abc import Callable, Sequence
from pathlib import Path

from diffdepth_jax.errors import ConfigError, MissingFileError, naming_file
from diffdepth_jax.inference.model import DepthModel
from diffdepth_jax.weights import orbax

_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


def find(folder: Path) -> list[Path]:
    """The runs with a complete checkpoint, and the files of weights, in a folder, by name.

    Raises:
        FileError: if there are none (`MissingFileError`), or the folder cannot be listed.
    """
    with naming_file(folder, "read"):
        entries = sorted(folder.iterdir())
        found = [path for path in entries if path.suffix in _SUFFIXES or orbax.is_run(path)]
    if not found:
        raise MissingFileError(
            f"{folder} holds no run with a complete checkpoint, and no file of weights "
            f"({', '.join(_SUFFIXES)})"
        )
    return found


def names(paths: Sequence[Path]) -> dict[str, Path]:
    """Short unique names of paths: the last part, with parents where needed to be unique."""
    unique = list(dict.fromkeys(path.absolute() for path in paths))
    most = max((len(path.parts) for path in unique), default=0)
    named: dict[str, Path] = {}
    for path in unique:
        for count in range(1, most + 1):
            ending = path.parts[-count:]
            if sum(other.parts[-count:] == ending for other in unique) == 1:
                break
        named["/".join(ending)] = path
    return named


class Checkpoints:
    """Loads checkpoints when they are first used, and keeps the most recently used ones.

    Args:
        paths: paths of checkpoints; duplicates are dropped.
        load: reads the model of a path.
        keep: how many models may stay loaded.

    Raises:
        ConfigError: if there are no paths, or `keep` is below 1.
        MissingFileError: if a path does not exist.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[Path], DepthModel], keep: int = 2):
        if not paths:
            raise ConfigError("no checkpoint is given")
        if keep < 1:
            raise ConfigError(f"{keep} models to keep loaded: it must be at least 1")
        for path in paths:
            with naming_file(path, "read"):
                path.stat()
        self._paths = names(paths)
        self._load = load
        self._keep = keep
        self._models: collections.OrderedDict[str, DepthModel] = collections.OrderedDict()

    @property
    def names(self) -> list[str]:
        """In the order of the paths."""
        return list(self._paths)

    @property
    def loaded(self) -> list[str]:
        """The names of the loaded models, the most recently used last."""
        return list(self._models)

    def model(self, name: str) -> DepthModel:
        """The model of a name.

        Raises:
            ConfigError: for an unknown name.
            UserError: as `load`.
        """
        if name not in self._paths:
            raise ConfigError(f"there is no checkpoint {name!r}; known are {', '.join(self.names)}")
        if name in self._models:
            self._models.move_to_end(name)
            return self._models[name]
        while len(self._models) >= self._keep:  # before another one takes memory
            self._models.popitem(last=False)
        self._models[name] = self._load(self._paths[name])
        return self._models[name]
