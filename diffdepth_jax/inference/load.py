"""Any checkpoint to a `DepthModel`.

The architecture comes from the checkpoint itself. Only arrays are read: no optimiser state, no data
pipeline, no PyTorch.
"""

import ctypes
import dataclasses
import functools
import os
import re
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffdepth_jax import atomic, registry, run_files
from diffdepth_jax import config as config_lib
from diffdepth_jax.errors import ConfigError, MissingFileError, WeightsError, naming_file
from diffdepth_jax.inference import nearest, recalibration
from diffdepth_jax.inference.model import DepthModel
from diffdepth_jax.models.networks.network import Network, NetworkConfig, TransformersLayout
from diffdepth_jax.weights import files, hugging_face, orbax, rules, text
from diffdepth_jax.weights.files import WeightsFile
from diffdepth_jax.weights.text import shown

_PARTS = ("encoder.pth", "depth.pth")  # of monodepth2's release


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
        source: a run directory or checkpoint directory of ours; an official `.pt`, `.pth` or
          `.ckpt` file (read without PyTorch, nothing in it is executed); a `.safetensors` file; a
          directory as Hugging Face's transformers writes it, or monodepth2's release; or a state
          dict, names to arrays in PyTorch's layout. Names are the publication's or transformers'.
        network: the registered name of the network that the weights belong to. Needed only where
          several have the same names and shapes and the file name does not decide either.
        step: which of a run's checkpoints; None for the latest; "best" for the one that the run's
          evaluations found best.
        dtype: of the convolutions and matrix products, `jnp.bfloat16` for speed on accelerators;
            parameters, the norms' statistics, latents and depth stay float32.
        **fields: of the network's config, which override the checkpoint and the file name; such as
            `max_depth=80.0`, which weights do not contain.

    Raises:
        FileError: if the file or directory does not exist (`MissingFileError`) or cannot be read.
        WeightsError: if the weights belong to no known network or to several, or do not fit it;
            says which and why, and names the nearest known architecture.
        ConfigError: for a network that does not exist, or fields that its config does not have.
    """
    model = _load(source, network, step, fields, dtype)
    return_freed_memory()
    return model


def _load(
    source: str | os.PathLike | Mapping[str, Any],
    network: str | None,
    step: orbax.Step | None,
    fields: Mapping[str, Any],
    dtype: Any,
) -> DepthModel:
    if isinstance(source, Mapping):
        if odd := [key for key in source if not isinstance(key, str)]:
            raise WeightsError(f"the given state dict has the key {odd[0]!r}, which is not text")
        given = _Source("the given state dict", source)
        return _from_state_dict(given, network, fields, dtype)
    path = Path(source).expanduser()
    with naming_file(path, "read"):
        if not path.exists():
            raise MissingFileError(
                f"{path} does not exist; give a run directory, one of transformers, a .pt or a "
                ".safetensors file"
            )
        is_directory = path.is_dir()
    file = path
    if is_directory and all((path / part).is_file() for part in _PARTS):
        contents = _read_parts(path)
        given = _Source(str(path), contents.state_dict, contents.metadata, (path.name,))
        return _from_state_dict(given, network, fields, dtype)
    if is_directory and (orbax.is_run(path) or not (file := hugging_face.weights_in(path))):
        return _from_run(path, step, network, fields, dtype)
    if step is not None:
        raise ConfigError(f"step={step} was asked of {file}, which has no steps")
    contents = hugging_face.read(file)
    stems = (path.name,) if is_directory else (path.stem, _without_suffixes(path.stem))
    given = _Source(str(path), contents.state_dict, contents.metadata, stems, file)
    return _from_state_dict(given, network, fields, dtype)


def _read_parts(directory: Path) -> WeightsFile:
    """The two files of a network that monodepth2 keeps apart; the first tells its images' size."""
    encoder, decoder = (files.read(directory / part) for part in _PARTS)
    return WeightsFile(encoder.state_dict | decoder.state_dict, {"args": encoder.metadata})


@dataclasses.dataclass(frozen=True)
class _Source:
    """A state dict and what is known about it.

    Attributes:
        name: its name in errors.
        state_dict: names to arrays in PyTorch's layout.
        metadata: of its file.
        stems: names under which it may have been published.
        file: where it was read.
    """

    name: str
    state_dict: Mapping[str, Any]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stems: tuple[str, ...] = ()
    file: Path | None = None

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: np.shape(value) for key, value in self.state_dict.items()}

    @functools.cached_property
    def described(self) -> Mapping[str, Any]:
        """The content of transformers' `config.json` in its folder."""
        return hugging_face.config_beside(self.file) if self.file else {}


def _without_suffixes(stem: str) -> str:
    """A file's name without the hash of torch.hub or the number of a browser."""
    return re.sub(r"(-[0-9a-f]{8}| ?\(\d+\))+$", "", stem)


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
    # If an average of the parameters was kept, that is evaluated.
    params = contents.ema_params or contents.params
    variables = {"params": params, "batch_stats": contents.batch_stats}
    expected = expected_variables(model)
    rules.check(variables, expected, f"{path} cannot be loaded")
    recalibrated = {}
    if (file := directory / run_files.RECALIBRATED).exists():
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
    variables = _on_device(variables)
    return DepthModel(model, variables, config, recalibrated)


@dataclasses.dataclass(frozen=True)
class _Recognised:
    """A network that weights may belong to.

    Attributes:
        file: of the network.
        config: as names and shapes determine it.
        layout: whose names the weights have: transformers', or the publication's own (None).
        named: fields that the name of the file stands for, if it is a published one, or that its
            `config.json` gives.
    """

    file: Network
    config: NetworkConfig
    layout: TransformersLayout | None
    named: Mapping[str, Any] | None

    @property
    def rules(self) -> rules.Rules:
        return (self.layout or self.file).rules(self.config)


def _from_state_dict(
    source: _Source, network: str | None, fields: Mapping[str, Any], dtype: Any
) -> DepthModel:
    source = dataclasses.replace(source, state_dict=_unwrapped(source.state_dict))
    state_dict = {key: np.asarray(value) for key, value in source.state_dict.items()}
    try:
        found = _recognised(source, network)
        arguments = _arguments(source.metadata, source.name)
        found = dataclasses.replace(found, config=_with_arguments(found, arguments, fields))
        _check_untold(found, {*arguments, *fields})
        model = found.file.build(found.config, dtype)
        expected = expected_variables(model)
        try:
            variables = rules.convert(
                state_dict, found.rules, expected, f"The weights in {source.name}"
            )
        except WeightsError as error:
            variant = _variant(found)
            named = f"the network {found.config.name!r}" + (f" ({variant})" if variant else "")
            # One odd entry may have been mistaken for the common width.
            near = ""
            if not variant:
                tried = rules.shapes(expected, found.rules)
                near = _near(source, [found.config.name], agreement=0.5, besides=tried)
            raise WeightsError(f"taken for {named}: {error}{near}") from error
        statistics = recalibration.from_text(source.metadata.get("recalibrated", "{}"))
        part = (*found.rules, rules.Fresh(".*", "statistics of the decoder only"))
        recalibrated = {
            steps: recalibration.pruned(rules.convert(arrays, part, expected)["batch_stats"])
            for steps, arrays in statistics.items()
        }
    except WeightsError as error:
        raise WeightsError(f"{source.name} cannot be loaded: {error}") from error
    variables = _on_device(variables)
    return DepthModel(model, variables, found.config, recalibrated)


def _unwrapped(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries without the prefix that a wrapper, such as Lightning or `torch.compile`, adds to
    all names; unchanged if that does not give a known network."""
    names = {name: name for name in state_dict}
    while names and not registry.matching("network", names.values()):
        (first, *others) = {name.partition(".")[0] for name in names.values()}
        if others or first in names.values():
            return state_dict
        names = {key: name.partition(".")[2] for key, name in names.items()}
    return {names[key]: value for key, value in state_dict.items()}


def _recognised(source: _Source, network: str | None) -> _Recognised:
    """The one network that weights belong to.

    Raises:
        WeightsError: if they belong to none, or to several and nothing decides which.
    """
    candidates = (network,) if network else registry.matching("network", source.shapes)
    found, reasons = {}, []
    for candidate in candidates:
        file = registry.module("network", candidate)
        try:
            if recognised := _inferred(file, source):
                found[candidate] = recognised
        except ValueError as error:  # These shapes or numbers give no valid config.
            reasons.append(str(error))
    if len(found) > 1:
        named = {name: each for name, each in found.items() if each.named is not None}
        found = named if len(named) == 1 else found
    if len(found) == 1:
        (recognised,) = found.values()
        return recognised
    sample = ", ".join(shown(key, 80) for key in list(source.shapes)[:4])
    sample += ", ..." if len(source.shapes) > 4 else ""
    if found:
        choices = " or ".join(f"network={name!r}" for name in found)
        raise WeightsError(
            f"the weights ({sample}) fit several networks, and the name of the file does not say "
            f"which: load(..., {choices})"
        )
    near = _near(source, candidates or registry.names("network"))
    if reasons:
        raise WeightsError("; ".join(reasons) + near)
    if candidates:
        of = " or ".join(map(repr, candidates))
        raise WeightsError(
            f"its names and shapes fit no architecture of this network ({of}).{near}"
        )
    encoders = " or ".join(map(repr, registry.matching("encoder", source.shapes)))
    alone = f", which an encoder ({encoders}; config.init.encoder takes it) alone is not"
    alone = alone if encoders else ""
    raise WeightsError(
        f"these {len(source.shapes)} weights ({sample}) belong to no network known here. Known "
        f"networks: {', '.join(registry.SIGNATURES['network'])}. Give the whole network's state "
        f"dict{alone}.{near}"
    )


def _inferred(file: Network, source: _Source) -> _Recognised | None:
    """How a network's file reads names and shapes; None if they are not of that network."""
    if (config := file.infer(source.shapes)) is not None:
        layout = None
    else:
        layout, described = file.TRANSFORMERS, source.described if file.TRANSFORMERS else {}
        if not layout or described.get("model_type", layout.model_type) != layout.model_type:
            return None
        if (config := layout.infer(source.shapes, described)) is None:
            return None
        if described:
            told = {field: getattr(config, field) for field in file.UNTOLD}
            return _Recognised(file, config, layout, told)
    named = (
        fields
        for stem in source.stems
        for pattern, fields in file.FILES.items()
        if re.fullmatch(pattern, stem)
    )
    return _Recognised(file, config, layout, next(named, None))


def _with_arguments(
    found: _Recognised, arguments: Mapping[str, Any], fields: Mapping[str, Any]
) -> NetworkConfig:
    """The config from the weights, then the file's name, its own entries and the caller."""
    config = _with_fields(found.config, found.named or {})
    try:
        config = found.file.with_arguments(config, arguments)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    return _with_fields(config, fields)


def _variant(found: _Recognised) -> str | None:
    """Which of a network's variants the weights are."""
    variants = found.file.VARIANTS
    same = (name for name in variants if nearest.have_same_weights(found.config, variants[name]))
    return next(same, None)


def _near(source: _Source, networks: Sequence[str], **options: Any) -> str:
    near = nearest.describe(source.shapes, networks, **options)
    return f"\n{near}" if near else ""


def _check_untold(found: _Recognised, told: Collection[str]) -> None:
    told = {*told, *(found.named or {})}
    untold = [field for field in found.file.UNTOLD if field not in told]
    if untold:
        choices = [
            " or ".join(f"{field}={value!r}" for value in found.file.UNTOLD[field])
            for field in untold
        ]
        published = dict.fromkeys(
            ", ".join(f"{field}={value!r}" for field, value in fields.items())
            for fields in found.file.FILES.values()
            if fields
        )
        published = f". Published files have {'; '.join(published)}" if published else ""
        raise WeightsError(
            f"neither the weights of the network {found.config.name!r} nor the name of the file "
            f"tells its {' and '.join(untold)}: load(..., {', '.join(choices)}){published}"
        )


def _arguments(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The training script's arguments, if a checkpoint has them as a mapping."""
    arguments = metadata.get("args") or {}
    # Metadata of a safetensors file are text; text other than JSON is ignored.
    if isinstance(arguments, str) and arguments.lstrip().startswith("{"):
        arguments = text.parse_json(arguments, "the entry args of its metadata")
    if not isinstance(arguments, Mapping):
        warnings.warn(
            f"{name}: the checkpoint's args are a {type(arguments).__name__}, no mapping of names "
            "to values: the numbers of steps and max_depth are the defaults",
            stacklevel=5,
        )
        return {}
    return arguments


def _with_fields(config: NetworkConfig, fields: Mapping[str, Any]) -> NetworkConfig:
    return config_lib.updated(config, fields, resolve=registry.module, path=config.name)


def _on_device(variables: dict[str, Any]) -> dict[str, Any]:
    """Converts NumPy leaves to JAX's in place, one by one, so that few are in memory twice."""
    for name, value in variables.items():
        variables[name] = _on_device(value) if isinstance(value, dict) else jnp.asarray(value)
    return variables


def return_freed_memory() -> None:
    """Returns to the system what glibc keeps: of freed arrays about a quarter of the weights'
    size, of compiling a few hundred megabytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def save_recalibrated(model: DepthModel, directory: str | os.PathLike) -> None:
    """Writes recalibrated statistics next to the weights of our own that they belong to.

    Args:
        model: with `recalibrated`, as `DepthModel.recalibrate` returns it.
        directory: `checkpoints/<step>` of the run that the model was loaded from, as
            `weights.orbax.checkpoint_directory` finds it; `load` reads them there.
    """
    found = {
        steps: traverse_util.flatten_dict(part, sep="/")
        for steps, part in model.recalibrated.items()
    }
    atomic.write_text(Path(directory) / run_files.RECALIBRATED, recalibration.to_text(found) + "\n")


def expected_variables(model: nn.Module) -> Mapping[str, Any]:
    """Shapes and types of a module's variables, without computing any."""
    return jax.eval_shape(model.init_variables, jax.random.key(0))
