"""Loads any checkpoint as a `DepthModel`.

The architecture is inferred from the checkpoint. Only the model's arrays are read; neither
optimiser state nor data pipeline nor PyTorch is needed.
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

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffdepth_jax import atomic, registry, run_files
from diffdepth_jax import config as config_lib
from diffdepth_jax.errors import ConfigError, MissingFileError, WeightsError, naming_file
from diffdepth_jax.inference import nearest, recalibration
from diffdepth_jax.inference.model import DepthModel
from diffdepth_jax.models.networks.network import (
    Network,
    NetworkConfig,
    TransformersLayout,
    expected_variables,
)
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
    """Rebuilds a model and its weights from a checkpoint.

    Args:
        source: one of our run or checkpoint directories; an official `.pt`, `.pth` or `.ckpt` file
            (read without PyTorch and without executing anything in it); a `.safetensors` file; a
            directory written by Hugging Face's transformers, or from monodepth2's release; or a
            state dict from names to arrays in PyTorch's layout. Names are the published ones or
            transformers'.
        network: registered name of the network that the weights belong to. Only needed if several
            networks match and the file name does not decide between them.
        step: which of a run's checkpoints; None for the latest, "best" for the best one in the
            run's evaluations.
        dtype: type used by convolutions and matrix products, for example `jnp.bfloat16` for speed
            on accelerators; parameters, normalisation statistics, latents and depth stay float32.
        **fields: fields of the network's config, which override the checkpoint and the file name;
            for example `max_depth=80.0`, which weights do not contain.

    Raises:
        FileError: if the file or directory does not exist (`MissingFileError`) or cannot be read.
        WeightsError: if the weights match no known network, or several, or do not fit; says why,
            and names the nearest known architecture.
        ConfigError: for an unknown network, or fields that its config does not have.
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
            raise WeightsError(
                f"the given state dict has the key {odd[0]!r}, which is not a string"
            )
        given = _Source("the given state dict", source)
        return _from_state_dict(given, network, fields, dtype)
    path = Path(source).expanduser()
    with naming_file(path, "read"):
        if not path.exists():
            raise MissingFileError(
                f"{path} does not exist; pass a run directory, a transformers directory, a .pt or "
                "a .safetensors file"
            )
        is_directory = path.is_dir()
    file = path
    if is_directory and all((path / part).is_file() for part in _PARTS):
        contents = _read_parts(path)
        given = _Source(str(path), contents.state_dict, contents.metadata, (path.name,))
        return _from_state_dict(given, network, fields, dtype)
    if is_directory:
        weights = None if orbax.is_run(path) else hugging_face.weights_in(path)
        if weights is None:
            return _from_run(path, step, network, fields, dtype)
        file = weights
    if step is not None:
        raise ConfigError(
            f"step is {step!r}, but {file} is not a run and has no steps: leave step out"
        )
    contents = hugging_face.read(file)
    stems = (path.name,) if is_directory else (path.stem, _without_suffixes(path.stem))
    given = _Source(str(path), contents.state_dict, contents.metadata, stems, file)
    return _from_state_dict(given, network, fields, dtype)


def _read_parts(directory: Path) -> WeightsFile:
    """The two files that monodepth2 splits a network into; the first contains the image size."""
    encoder, decoder = (files.read(directory / part) for part in _PARTS)
    return WeightsFile(encoder.state_dict | decoder.state_dict, {"args": encoder.metadata})


@dataclasses.dataclass(frozen=True)
class _Source:
    """A state dict and what is known about it.

    Attributes:
        name: its name in errors.
        state_dict: names to arrays in PyTorch's layout.
        metadata: metadata of its file.
        stems: file names under which it may have been published.
        file: the file it was read from.
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
    """A file's name without torch.hub's hash or a browser's number."""
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
        raise WeightsError(f"the config in {directory} cannot be read: {error}") from error
    if network not in (None, config.name):
        raise ConfigError(f"{path} is a run of the network {config.name!r}, not of {network!r}")
    config = _with_fields(config, fields)
    model = registry.module("network", config.name).build(config, dtype)
    # If an average of the parameters was kept, use it.
    params = contents.ema_params or contents.params
    variables = {"params": params, "batch_stats": contents.batch_stats}
    expected = expected_variables(model)
    rules.check(variables, expected, f"{path} cannot be loaded")
    recalibrated = {}
    for steps, leaves in _read_recalibrated(directory).items():
        recalibrated[steps] = traverse_util.unflatten_dict(leaves, sep="/")
        rules.check(
            recalibration.replaced(variables, recalibrated[steps]),
            expected,
            f"{directory / run_files.RECALIBRATED} has statistics that do not fit: recompute them "
            "with tools/recalibrate.py",
        )
    variables = _on_device(variables)
    return DepthModel(model, variables, config, recalibrated)


@dataclasses.dataclass(frozen=True)
class _Recognised:
    """A network that the weights may belong to.

    Attributes:
        file: the network's file.
        config: the config inferred from names and shapes.
        layout: the layout of the names: transformers', or None for the published one.
        named: config fields determined by the name of a published file or by `config.json`.
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
        _check_undetermined(found, {*arguments, *fields})
        model = found.file.build(found.config, dtype)
        expected = expected_variables(model)
        try:
            variables = rules.convert(
                state_dict, found.rules, expected, f"The weights in {source.name}"
            )
        except WeightsError as error:
            variant = _variant(found)
            named = f"the network {found.config.name!r}" + (f" ({variant})" if variant else "")
            # A single wrong entry may have been mistaken for the common width.
            near = ""
            if not variant:
                tried = rules.shapes(expected, found.rules)
                near = _near(source, [found.config.name], agreement=0.5, besides=tried)
            raise WeightsError(f"identified as {named}: {error}{near}") from error
        statistics = recalibration.from_text(source.metadata.get("recalibrated", "{}"))
        part = (*found.rules, rules.Fresh(".*", "only the decoder's statistics"))
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
    all names; unchanged if no known network results."""
    names = {name: name for name in state_dict}
    while names and not registry.matching("network", names.values()):
        (first, *others) = {name.partition(".")[0] for name in names.values()}
        if others or first in names.values():
            return state_dict
        names = {key: name.partition(".")[2] for key, name in names.items()}
    return {names[key]: value for key, value in state_dict.items()}


def _recognised(source: _Source, network: str | None) -> _Recognised:
    """The network that the weights belong to.

    Raises:
        WeightsError: if there is none, or several and nothing decides between them.
    """
    candidates = (network,) if network else registry.matching("network", source.shapes)
    found, reasons = {}, []
    for candidate in candidates:
        file = registry.module("network", candidate)
        try:
            if recognised := _inferred(file, source):
                found[candidate] = recognised
        except ValueError as error:  # these shapes or numbers give no valid config
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
            f"the weights ({sample}) fit several networks, and the file name does not decide "
            f"between them: use load(..., {choices})"
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
    alone = f"; this is only an encoder ({encoders}), for config.init.encoder" if encoders else ""
    raise WeightsError(
        f"these {len(source.shapes)} weights ({sample}) do not match any known network. Known "
        f"networks: {', '.join(registry.SIGNATURES['network'])}. Give the whole network's state "
        f"dict{alone}.{near}"
    )


def _inferred(file: Network, source: _Source) -> _Recognised | None:
    """What a network's file infers from names and shapes; None if they are another network's."""
    if (config := file.infer(source.shapes)) is not None:
        layout = None
    else:
        layout, described = file.TRANSFORMERS, source.described if file.TRANSFORMERS else {}
        if not layout or described.get("model_type", layout.model_type) != layout.model_type:
            return None
        if (config := layout.infer(source.shapes, described)) is None:
            return None
        if described:
            named = {field: getattr(config, field) for field in file.UNDETERMINED}
            return _Recognised(file, config, layout, named)
    matching = (
        fields
        for stem in source.stems
        for pattern, fields in file.FILES.items()
        if re.fullmatch(pattern, stem)
    )
    return _Recognised(file, config, layout, next(matching, None))


def _with_arguments(
    found: _Recognised, arguments: Mapping[str, Any], fields: Mapping[str, Any]
) -> NetworkConfig:
    """The config from the weights, updated by the file's name, its entries and the caller."""
    config = _with_fields(found.config, found.named or {})
    try:
        config = found.file.with_arguments(config, arguments)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    return _with_fields(config, fields)


def _variant(found: _Recognised) -> str | None:
    """The network variant that the weights belong to."""
    variants = found.file.VARIANTS
    same = (name for name in variants if nearest.have_same_weights(found.config, variants[name]))
    return next(same, None)


def _near(source: _Source, networks: Sequence[str], **options: Any) -> str:
    near = nearest.describe(source.shapes, networks, **options)
    return f"\n{near}" if near else ""


def _check_undetermined(found: _Recognised, given: Collection[str]) -> None:
    known = {*given, *(found.named or {})}
    if undetermined := [field for field in found.file.UNDETERMINED if field not in known]:
        choices = [
            " or ".join(f"{field}={value!r}" for value in found.file.UNDETERMINED[field])
            for field in undetermined
        ]
        published = dict.fromkeys(
            ", ".join(f"{field}={value!r}" for field, value in fields.items())
            for fields in found.file.FILES.values()
            if fields
        )
        examples = f". Published files have {'; '.join(published)}" if published else ""
        raise WeightsError(
            f"neither the weights of the network {found.config.name!r} nor the file name determine "
            f"its {' and '.join(undetermined)}: use load(..., {', '.join(choices)}){examples}"
        )


def _arguments(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The training script's arguments, if a checkpoint stores them as a mapping."""
    arguments = metadata.get("args") or {}
    # Metadata in safetensors files are strings; those that are not JSON are ignored.
    if isinstance(arguments, str) and arguments.lstrip().startswith("{"):
        arguments = text.parse_json(arguments, "the entry args of its metadata")
    if not isinstance(arguments, Mapping):
        warnings.warn(
            f"{name}: the checkpoint's args are a {type(arguments).__name__}, not a mapping of "
            "names to values, so the defaults for the numbers of steps and max_depth are used",
            stacklevel=5,
        )
        return {}
    return arguments


def _with_fields(config: NetworkConfig, fields: Mapping[str, Any]) -> NetworkConfig:
    return config_lib.updated(config, fields, resolve=registry.module, path=config.name)


def _on_device(variables: dict[str, Any]) -> dict[str, Any]:
    """Converts NumPy leaves to JAX in place, one by one, so that few are in memory twice."""
    for name, value in variables.items():
        # `jnp.asarray` would compile, and keep, a program for every shape. `device_put` may share
        # the memory of an aligned array, even with may_alias=False, so it gets a copy.
        variables[name] = (
            _on_device(value) if isinstance(value, dict) else jax.device_put(np.array(value))
        )
    return variables


def return_freed_memory() -> None:
    """Returns memory held by glibc to the system: about a quarter of the weights' size from freed
    arrays, and a few hundred megabytes from compilation."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _read_recalibrated(directory: Path) -> dict[int, dict[str, np.ndarray]]:
    """Statistics by number of steps and by path, without checking that they fit."""
    file = directory / run_files.RECALIBRATED
    if not file.exists():
        return {}
    with naming_file(file, "read"):
        content = file.read_text(errors="replace")
    try:
        return recalibration.from_text(content)
    except WeightsError as error:
        raise WeightsError(f"{file} has {error}") from error


def save_recalibrated(model: DepthModel, directory: str | os.PathLike) -> None:
    """Writes recalibrated statistics next to the weights of a run.

    Stored statistics for other numbers of steps are kept: another process may have added them since
    the model was loaded.

    Args:
        model: a model with `recalibrated`, as returned by `DepthModel.recalibrate`.
        directory: `checkpoints/<step>` of the run that the model was loaded from, see
            `weights.orbax.checkpoint_directory`; `load` reads them from there.

    Raises:
        FileError, WeightsError: if stored statistics cannot be read, or the file cannot be written.
    """
    directory = Path(directory)
    found = _read_recalibrated(directory) | {
        steps: traverse_util.flatten_dict(part, sep="/")
        for steps, part in model.recalibrated.items()
    }
    atomic.write_text(directory / run_files.RECALIBRATED, recalibration.to_text(found) + "\n")
