"""Inspects folders and files of diffusion models, and passes them on without pickles.

The PyTorch process gets a folder of links, created here, to a model's JSON and text files and its
safetensors. Weights in other formats (`.bin`, `.ckpt`, `.pth`) are read by `weights.files`, which
executes nothing, and rewritten as safetensors. Code in a model's folder is never linked, and the
names in its `model_index.json` do not determine which classes are created.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors

from diffdepth_jax.errors import ConfigError, MissingFileError, WeightsError, naming_file
from diffdepth_jax.weights import files, hugging_face
from diffdepth_jax.weights.text import parse_json, shown

Family = Literal["sd", "sdxl"]
INDEX = "model_index.json"

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/name
_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model", "model"
# Folders of a base model, with the stem of their weights; None if they have no weights.
_PARTS: dict[str, str | None] = {
    "unet": _DIFFUSERS,
    "vae": _DIFFUSERS,
    "text_encoder": _TRANSFORMERS,
    "text_encoder_2": _TRANSFORMERS,
    "tokenizer": None,
    "tokenizer_2": None,
    "scheduler": None,
    "feature_extractor": None,
    "safety_checker": _TRANSFORMERS,
}
_REQUIRED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_SECOND = ("text_encoder_2", "tokenizer_2")
_CONFIG_FILES = {
    "scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
}
_TEXT = (".json", ".txt", ".model")
_SAMPLE = 1 << 16  # bytes
_SAMPLES = 256


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model that is ready to load.

    Attributes:
        name: name given by the user.
        family: Stable Diffusion 1.x and 2.x, or XL.
        folder: contains configs and tokenizers, and weights unless there is a `file`.
        file: a single safetensors file in the original layout, or None.
        unet: config of its U-Net.
        safety_checker: whether the folder has a complete safety checker.
        fingerprint: hash of everything that determines pixels.
    """

    name: str
    family: Family
    folder: Path
    file: Path | None
    unet: Mapping[str, Any]
    safety_checker: bool
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Control:
    """A T2I-Adapter or ControlNet that is ready to load.

    Attributes:
        name: name given by the user.
        folder: in diffusers layout; None if there is a `file`.
        file: a ControlNet as a single safetensors file, or None.
        config: its `config.json`; empty for a `file`.
        fingerprint: hash of everything that determines pixels.
    """

    name: str
    folder: Path | None
    file: Path | None
    config: Mapping[str, Any]
    fingerprint: str


def is_repository(name: str) -> bool:
    """Whether a name that is not a local file or folder may be a Hub repository."""
    return not Path(name).expanduser().exists() and _HUB.fullmatch(name) is not None


def find(field: str, name: str) -> Path:
    """The file or folder named in a config field.

    Raises:
        MissingFileError: if it does not exist.
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise MissingFileError(
            f"{field} is {name!r}, but there is no such file or folder: use a diffusers folder, a "
            "single weights file, or a repository on the Hugging Face Hub as owner/name"
        )
    return path


def prepare_base(
    name: str, path: Path, configs: Path | None, into: Path, *, safety_checker: bool
) -> Base:
    """Inspects a base model and links it below `into`.

    Args:
        name: for errors.
        path: a diffusers folder, or a single file.
        configs: for a single file, a diffusers folder; its weights are not needed.
        into: where a new folder is created.
        safety_checker: whether to use the folder's safety checker, if it has one.

    Raises:
        ConfigError: if it is not a supported kind of model.
        FileError, WeightsError: if something is missing or damaged.
    """
    into = into / "base"
    if path.is_dir() and (path / "unet").is_dir():
        folder, file = path, None
    elif path.is_dir():
        if (path / "config.json").is_file():
            kind = _json(path / "config.json").get("_class_name", "a single network")
            raise ConfigError(
                f"base is {name!r}, which is {shown(str(kind))}, not a whole pipeline"
            )
        raise MissingFileError(
            f"base is {name!r}, which has no {INDEX} and no folder `unet`: use a folder written by "
            "diffusers' save_pretrained"
        )
    elif configs is None:
        raise ConfigError(
            f"base is the single file {name!r}, which contains neither configs nor tokenizer: set "
            "base_config to a diffusers folder of the same family (its weights are not needed), "
            "or to its repository, such as stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
    else:
        folder, file = configs, path
    index = _require_known_parts(folder, name)
    family = _family(folder, name)
    required = (*_REQUIRED, *(_SECOND if family == "sdxl" else ()))
    parts = [part for part in _PARTS if part in required]
    with_checker = False
    if safety_checker and file is None and index.get("safety_checker", [None])[0] is not None:
        # A folder may list one that was not downloaded.
        with_checker = (
            _weights(folder / "safety_checker", _TRANSFORMERS) is not None
            and (folder / "feature_extractor" / _CONFIG_FILES["feature_extractor"]).is_file()
        )
        parts += ["feature_extractor", "safety_checker"] * with_checker
    digest = hashlib.sha256()
    if (folder / INDEX).is_file():
        _link(folder / INDEX, into / INDEX)
    for part in parts:
        stem = _PARTS[part] if file is None else None
        _prepare_folder(folder / part, into / part, stem, digest, _CONFIG_FILES.get(part))
    if file is not None:
        file = _prepare_file(file, into / "weights.safetensors", digest)
    unet = _json(folder / "unet" / "config.json")
    channels = unet.get("in_channels", 4)
    if channels != 4:
        raise ConfigError(
            f"base is {name!r}, whose U-Net has {channels} input channels, so it is for inpainting "
            "or editing: use a text-to-image model"
        )
    return Base(name, family, into, file, unet, with_checker, digest.hexdigest()[:32])


def prepare_control(name: str, path: Path, pipeline: str, base: Base, into: Path) -> Control:
    """Inspects an adapter or ControlNet, links it below `into`, and checks that it fits the base.

    Raises:
        ConfigError: if the pipeline needs another kind of network, or it does not fit the base.
        FileError, WeightsError: if something is missing or damaged.
    """
    into, digest = into / "control", hashlib.sha256()
    wanted = "T2IAdapter" if pipeline == "t2i_adapter" else "ControlNetModel"
    if path.is_file() and path.stem.startswith(_DIFFUSERS) and _has_config(path.parent):
        path = path.parent
    if path.is_dir():
        if not _has_config(path):
            raise MissingFileError(
                f"control is {name!r}, which has no config.json: use the folder of an adapter or "
                "ControlNet"
            )
        config = _json(path / "config.json")
        _require_kind(name, config.get("_class_name"), pipeline)
        _prepare_folder(path, into, _DIFFUSERS, digest)
        control = Control(name, into, None, config, digest.hexdigest()[:32])
    else:
        names = _names(path)
        kind = _kind_of_file(names)
        _require_kind(name, kind, pipeline)
        if wanted == "T2IAdapter":
            config = _write_adapter(path, into, digest)
            control = Control(name, into, None, config, digest.hexdigest()[:32])
        else:
            file = _prepare_file(path, into / "weights.safetensors", digest)
            control = Control(name, None, file, {}, digest.hexdigest()[:32])
            _require_file_fits(control, names, base)
    _require_fit(control, pipeline, base)
    return control


# ---- compatibility ------------------------------------------------------------------------------


def _require_known_parts(folder: Path, name: str) -> Mapping[str, Any]:
    """A folder's index, whose parts must come from diffusers and transformers."""
    if not (folder / INDEX).is_file():
        return {}
    index = _json(folder / INDEX)
    for part, value in index.items():
        library = value[0] if isinstance(value, list) and value else None
        if part.startswith("_") or library is None:
            continue
        if library not in ("diffusers", "transformers", "stable_diffusion"):
            raise ConfigError(
                f"{name!r} needs custom code for {shown(str(part), 80)} "
                f"({shown(str(library), 80)}), which is never run: use a model with diffusers' own "
                "classes"
            )
    return index


def _family(folder: Path, name: str) -> Family:
    if not (folder / "unet" / "config.json").is_file():
        raise ConfigError(
            f"{name!r} has no unet/config.json: only Stable Diffusion 1.x, 2.x and XL are "
            "supported (others can be added as a file in adverse/backends)"
        )
    unet = _json(folder / "unet" / "config.json")
    kind = unet.get("_class_name")
    if kind != "UNet2DConditionModel":
        raise ConfigError(
            f"{name!r} has the U-Net {shown(str(kind))}, but UNet2DConditionModel is needed"
        )
    if unet.get("addition_embed_type") != "text_time":
        return "sd"
    if not (folder / "text_encoder").is_dir():
        raise ConfigError(f"{name!r} is SDXL's refiner; use a base model")
    return "sdxl"


def _require_kind(name: str, kind: Any, pipeline: str) -> None:
    adapter = pipeline == "t2i_adapter"
    if kind == ("T2IAdapter" if adapter else "ControlNetModel"):
        return
    remedy = {
        "T2IAdapter": "set pipeline to 't2i_adapter'",
        "ControlNetModel": "set pipeline to 'controlnet' or 'controlnet_img2img'",
    }.get(kind, "use a single depth T2I-Adapter or ControlNet")
    article = "a T2I-Adapter" if adapter else "a ControlNet"
    # Loaded as the other kind, it would silently consist of random numbers.
    raise ConfigError(
        f"control is {name!r}, which is {shown(str(kind))}, but the pipeline {pipeline!r} needs "
        f"{article}: {remedy}"
    )


def _require_fit(control: Control, pipeline: str, base: Base) -> None:
    config, unet = control.config, base.unet
    pair = f"control {control.name!r} does not fit base {base.name!r}"
    other = "XL" if base.family == "sd" else "1.x"
    if pipeline == "t2i_adapter":
        channels = tuple(config.get("channels", (320, 640, 1280, 1280)))
        blocks = tuple(unet.get("block_out_channels", (320, 640, 1280, 1280)))
        kind = config.get("adapter_type", "full_adapter")
        wanted = "full_adapter" if base.family == "sd" else "full_adapter_xl"
        if kind != wanted:
            raise ConfigError(
                f"{pair}: it is a {kind}, but a {wanted} is needed. Use an adapter for Stable "
                f"Diffusion {'1.x' if base.family == 'sd' else 'XL'}, or a base of {other}"
            )
        expected = blocks if base.family == "sd" else (*blocks, blocks[-1])
        if channels != expected:
            raise ConfigError(f"{pair}: it has channels {channels}, but {expected} are needed")
        if config.get("in_channels", 3) != 3:
            raise ConfigError(
                f"{pair}: it takes images with {config['in_channels']} channel, like adapters for "
                "sketches; use one for depth"
            )
    elif control.file is None:
        for field, default in (
            ("cross_attention_dim", 1280),
            ("block_out_channels", [320, 640, 1280, 1280]),
            ("addition_embed_type", None),
            ("layers_per_block", 2),
        ):
            mine, theirs = config.get(field, default), unet.get(field, default)
            if mine != theirs:
                raise ConfigError(
                    f"{pair}: its {field} is {mine}, but the base's is {theirs}. Both must be from "
                    "the same family (1.x, 2.x or XL): use a ControlNet for this base"
                )
        if config.get("conditioning_channels", 3) != 3:
            raise ConfigError(f"{pair}: it takes {config['conditioning_channels']} channels, not 3")


def _kind_of_file(names: Mapping[str, tuple[int, ...]]) -> str:
    keys = [name.removeprefix("adapter.") for name in names]
    if any(key.startswith(("input_hint_block", "control_model.", "controlnet_")) for key in keys):
        return "ControlNetModel"
    if "conv_in.weight" in keys and any(re.match(r"body\.\d+\.", key) for key in keys):
        return "T2IAdapter"
    if any(re.match(r"body\.\d+\.in_conv", key) for key in keys):
        return "a light T2I-Adapter (colour)"
    return "neither a T2I-Adapter nor a ControlNet"


def _require_file_fits(control: Control, names: Mapping[str, tuple[int, ...]], base: Base) -> None:
    """Checks that the text width of a ControlNet file matches the base's."""
    widths = {shape[1] for name, shape in names.items() if name.endswith("attn2.to_k.weight")}
    wanted = base.unet.get("cross_attention_dim", 1280)
    if widths and widths != {wanted}:
        raise ConfigError(
            f"control {control.name!r} does not fit base {base.name!r}: it attends to text of "
            f"width {', '.join(map(str, sorted(widths)))}, but the base to {wanted}. Both must be "
            "from the same family (1.x, 2.x or XL)"
        )


# ---- single files of adapters --------------------------------------------------------------------


def _write_adapter(path: Path, into: Path, digest: Any) -> dict[str, Any]:
    """Converts an adapter from the original code to a diffusers folder; returns its config.

    The authors number the ResNet blocks `body.N.*`; diffusers groups them by stage:
    `adapter.body.{N // 2}.resnets.{N % 2}.*`.
    """
    state_dict = files.read(path).state_dict
    renamed = {}
    for name, array in state_dict.items():
        if name.startswith("adapter."):
            renamed[name] = array
        elif match := re.fullmatch(r"body\.(\d+)\.(.+)", name):
            stage, block = divmod(int(match[1]), 2)
            inner = match[2] if match[2].startswith("in_conv.") else f"resnets.{block}.{match[2]}"
            renamed[f"adapter.body.{stage}.{inner}"] = array
        elif name.startswith("conv_in."):
            renamed[f"adapter.{name}"] = array
        else:
            raise WeightsError(
                f"{path} has the entry {shown(name, 80)!r}, which adapters do not have"
            )
    stages = {
        int(match[1]): array.shape[0]
        for name, array in renamed.items()
        if (match := re.fullmatch(r"adapter\.body\.(\d+)\.resnets\.0\.block1\.weight", name))
    }
    first = renamed.get("adapter.conv_in.weight")
    if first is None or first.ndim != 4 or sorted(stages) != list(range(len(stages))):
        raise WeightsError(f"{path} is not a complete T2I-Adapter: copy it again")
    inputs = first.shape[1]  # channels times the squared pixel unshuffle factor
    channels = 3 if inputs % 3 == 0 else 1
    factor = round((inputs / channels) ** 0.5)
    if factor not in (8, 16) or channels * factor**2 != inputs:
        raise WeightsError(
            f"{path} is an adapter with {inputs} inputs, but only 192 and 768 are supported"
        )
    config = {
        "_class_name": "T2IAdapter",
        "adapter_type": "full_adapter" if factor == 8 else "full_adapter_xl",
        "channels": [stages[stage] for stage in sorted(stages)],
        "downscale_factor": factor,
        "in_channels": channels,
        "num_res_blocks": 2,
    }
    with naming_file(into, "written"):
        into.mkdir(parents=True)
        (into / "config.json").write_text(json.dumps(config))
    files.write_safetensors(into / f"{_DIFFUSERS}.safetensors", renamed)
    _add_file(digest, path)
    return config


# ---- folders -------------------------------------------------------------------------------------


def _prepare_folder(
    folder: Path, into: Path, stem: str | None, digest: Any, required: str | None = None
) -> None:
    """Links a folder's text files, and its weights if they have a stem."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is missing: copy or download the model again")
    if required is None:
        required = "config.json" if stem is not None else None
    if required is not None and not (folder / required).is_file():
        raise MissingFileError(f"{folder} has no {required}: copy or download the model again")
    with naming_file(folder, "read"):
        texts = sorted(path for path in folder.iterdir() if path.suffix in _TEXT and path.is_file())
    for path in texts:
        if not path.name.endswith(".index.json"):
            _link(path, into / path.name)
            _add_file(digest, path)
    if stem is None:
        return
    weights = _weights(folder, stem)
    if weights is None:
        raise MissingFileError(
            f"{folder} has no weights ({stem}.safetensors): download the complete model"
        )
    if weights.name.endswith(".safetensors.index.json"):
        index = _json(weights)
        shards = sorted(set(index.get("weight_map", {}).values()))
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise WeightsError(
                    f"{weights} names {shown(str(shard), 80)!r}, which is not a file next to it"
                )
            _prepare_file(folder / shard, into / shard, digest)
        _link(weights, into / f"{stem}.safetensors.index.json")
    elif weights.name.endswith(".index.json"):  # for pickles
        contents = hugging_face.read(weights)
        files.write_safetensors(into / f"{stem}.safetensors", contents.state_dict)
        for shard in sorted(set(_json(weights)["weight_map"].values())):
            _add_file(digest, folder / shard)
    else:
        _prepare_file(weights, into / f"{stem}.safetensors", digest)


def _weights(folder: Path, stem: str) -> Path | None:
    """A folder's weights; prefers safetensors and full precision."""
    old = "pytorch_model" if stem == _TRANSFORMERS else stem
    for name in (
        f"{stem}.safetensors",
        f"{stem}.safetensors.index.json",
        f"{stem}.fp16.safetensors",
        f"{old}.bin",
        f"{old}.bin.index.json",
        f"{old}.fp16.bin",
    ):
        if (folder / name).is_file():
            return folder / name
    return None


def _prepare_file(path: Path, target: Path, digest: Any) -> Path:
    """Links a safetensors file, or converts another format to safetensors."""
    if not _is_safetensors(path):
        files.write_safetensors(_parent_made(target), files.read(path).state_dict)
    else:
        _names(path)
        _link(path, target)
    _add_file(digest, path)
    return target


def _is_safetensors(path: Path) -> bool:
    with naming_file(path, "read"), path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _names(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors; for safetensors, only the header is read."""
    if not _is_safetensors(path):
        return {name: array.shape for name, array in files.read(path).state_dict.items()}
    try:
        with naming_file(path, "read"), safetensors.safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{path} is a truncated or damaged safetensors file ({error}); copy it again"
        ) from error


def _link(path: Path, target: Path) -> None:
    with naming_file(target, "written"):
        try:
            os.symlink(path.resolve(), _parent_made(target))
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # the file system has no links
            shutil.copyfile(path, target)


def _parent_made(path: Path) -> Path:
    with naming_file(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _json(path: Path) -> dict[str, Any]:
    with naming_file(path, "read"):
        content = path.read_text(encoding="utf-8", errors="replace")
    value = parse_json(content, str(path))
    if not isinstance(value, dict):
        raise WeightsError(f"{path} is not a JSON object; copy or download the model again")
    return value


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _add_file(digest: Any, path: Path) -> None:
    """Hashes a file's name, size and content; for a large file, 256 samples of 64 KiB."""
    with naming_file(path, "read"), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"{path.name} {size}\n".encode())
        if size <= _SAMPLE * _SAMPLES:
            digest.update(file.read())
            return
        for index in range(_SAMPLES):
            file.seek((size - _SAMPLE) * index // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
