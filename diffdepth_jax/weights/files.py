"""Weights from files: PyTorch's two formats (without PyTorch) and safetensors.

PyTorch writes either a zip archive (`<root>/data.pkl` beside one uncompressed record
`<root>/data/<key>` per storage; the default since 1.6) or, before that and by request, a stream of
pickles followed by the raw storages. Both are read by `torch_pickle`, which executes nothing.
"""

import contextlib
import io
import math
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from diffdepth_jax import atomic
from diffdepth_jax.errors import WeightsError
from diffdepth_jax.weights import torch_pickle
from diffdepth_jax.weights.torch_pickle import REMEDY, Array, Storage, Tensor

# Under which names training scripts keep the state dict; DiffusionDepth's is "net".
_STATE_DICT_NAMES = ("net", "state_dict", "model", "model_state_dict")
_METADATA_LIMIT = 100_000  # values and characters per entry
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        state_dict: names to arrays. A leading `module.` that all names share is removed. Arrays are
            read-only, and those that shared a storage still do.
        metadata: the other entries of the file that are small and plain, such as `args` (the
            training script's Namespace, as a dict) or `epoch`.
    """

    state_dict: dict[str, np.ndarray]
    metadata: dict[str, Any]


def read(path: str | os.PathLike[str]) -> WeightsFile:
    """Reads a `.pt`/`.pth` file (zip or legacy) or a `.safetensors` file; the content decides.

    The state dict is the entry `net`, `state_dict`, `model` or `model_state_dict` of the saved
    object, or that object itself. Storages that no entry of it uses are not read.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it is truncated, of another format, holds no state dict, or if its pickle
            asks for anything but tensors, containers and plain values (the message names it).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    if path.is_dir():
        raise WeightsError(f"{path} is a directory; a .pt, .pth or .safetensors file was expected")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty; copy or download it again")
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content[:4] == b"PK\x03\x04":
                state_dict, metadata = _read_zip(path, content)
            elif content[8:9] == b"{":  # first, for the length before it may look like a pickle
                state_dict, metadata = _read_safetensors(path)
            elif content[:1] == b"\x80":
                state_dict, metadata = _read_legacy(content)
            else:
                raise WeightsError(f"{_describe(content[:64])}. {REMEDY}")
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    if all(name.startswith("module.") for name in state_dict):
        state_dict = {name.removeprefix("module."): a for name, a in state_dict.items()}
    return WeightsFile(state_dict, metadata)


def write_safetensors(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a state dict as safetensors, whole or not at all."""
    # The package writes an array's memory as it lies, so a transposed one must be copied first.
    arrays = {name: np.require(array, requirements="C") for name, array in state_dict.items()}
    strings = None if metadata is None else dict(metadata)
    # By name: `save` would hold a second copy of all arrays in memory.
    atomic.write(path, lambda file: safetensors.numpy.save_file(arrays, file.name, strings))


# ---- formats -------------------------------------------------------------------------------------

_Contents = tuple[dict[str, np.ndarray], dict[str, Any]]


def _read_zip(path: Path, content: mmap.mmap) -> _Contents:
    try:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise WeightsError(f"a truncated or damaged zip ({error}); copy the file again") from error
    pickles = [name for name in records if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    if len(pickles) != 1:
        raise WeightsError(f"a zip archive without PyTorch's data.pkl. {REMEDY}")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in records:
        raise WeightsError(
            "a TorchScript archive, which holds code. Save its weights alone: "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"
        )

    def locate(name: str) -> tuple[int, int]:
        """Where a record's bytes start and how many there are."""
        if name not in records:
            raise WeightsError(f"the archive has no record {name!r}; copy the file again")
        info = records[name]
        header = content[info.header_offset : info.header_offset + 30]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise WeightsError(f"record {name!r} is compressed, as PyTorch never writes. {REMEDY}")
        if header[:4] != b"PK\x03\x04" or len(header) < 30:
            raise WeightsError(f"record {name!r} is damaged; copy the file again")
        # The local header's own lengths count: PyTorch pads it so that the data are aligned.
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        return start, info.file_size

    def record(name: str) -> bytes:
        return _slice(content, *locate(name))

    value = torch_pickle.load(io.BytesIO(record(pickles[0]))).value
    byteorder = record(f"{root}byteorder") if f"{root}byteorder" in records else b"little"
    reader = _TensorReader(
        content, lambda key: locate(f"{root}data/{key}"), big_endian=byteorder == b"big"
    )
    return _split(value, reader)


def _read_legacy(content: mmap.mmap) -> _Contents:
    if torch_pickle.load(content).value != _LEGACY_MAGIC:
        raise WeightsError(f"a pickle, but not one of torch.save. {REMEDY}")
    protocol = torch_pickle.load(content).value
    if protocol != _LEGACY_PROTOCOL:
        raise WeightsError(f"PyTorch's legacy format in an unknown version. {REMEDY}")
    torch_pickle.load(content)  # the writing machine: its storages are little-endian anyway
    value, dtypes = torch_pickle.load(content)
    keys = torch_pickle.load(content).value

    spans: dict[str, tuple[int, int]] = {}
    position = content.tell()
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in dtypes:
            raise WeightsError("a storage that belongs to no tensor; copy the file again")
        (numel,) = struct.unpack("<Q", _slice(content, position, 8))
        spans[key] = position + 8, numel * dtypes[key].itemsize
        position += 8 + spans[key][1]
    if position > len(content):
        raise WeightsError(
            f"truncated: {position:,} bytes expected, {len(content):,} found; copy the file again"
        )

    def locate(key: str) -> tuple[int, int]:
        if key not in spans:
            raise WeightsError(f"the file has no storage {key!r}; copy it again")
        return spans[key]

    return _split(value, _TensorReader(content, locate))


def _read_safetensors(path: Path) -> _Contents:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.get_tensors(), dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"a truncated or damaged safetensors file ({error}); copy it again"
        ) from error
    except AttributeError as error:  # how the package says that a type is unknown to NumPy
        raise WeightsError(f"holds numbers of an unsupported type ({error})") from error


def _describe(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the real file with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page, probably of a failed download"
    return f"neither a PyTorch nor a safetensors file (it starts with {start[:16]!r})"


def _slice(content: mmap.mmap, start: int, size: int) -> bytes:
    data = content[start : start + size]
    if len(data) != size:
        raise WeightsError(f"truncated: {size:,} bytes expected at {start:,}; copy the file again")
    return data


# ---- tensors -------------------------------------------------------------------------------------


class _TensorReader:
    """Makes arrays of tensor descriptions, reading each storage once and only when asked for."""

    def __init__(
        self,
        content: mmap.mmap,
        locate: Callable[[str], tuple[int, int]],
        *,
        big_endian: bool = False,
    ) -> None:
        self._content = content
        self._locate = locate
        self._big_endian = big_endian
        self._storages: dict[str, np.ndarray] = {}

    def read(self, tensor: Tensor) -> np.ndarray:
        shape, strides, dtype = tensor.shape, tensor.strides, tensor.dtype
        size = math.prod(shape)
        if min((*shape, *strides, tensor.offset), default=0) < 0 or len(shape) != len(strides):
            raise WeightsError(f"shape {shape} with strides {strides} at {tensor.offset}")
        # An expanded tensor is larger than its storage; larger than the file none should be.
        if size * dtype.itemsize > len(self._content):
            raise WeightsError(f"shape {shape} needs more bytes than the whole file has")
        if size == 0:
            return np.empty(shape, dtype)
        elements = self._elements(tensor.storage, dtype)
        last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if tensor.offset + last >= len(elements):
            raise WeightsError(
                f"shape {shape} with strides {strides} at {tensor.offset} overruns its storage of "
                f"{len(elements):,} elements"
            )
        steps = [
            stride * dtype.itemsize if n > 1 else 0  # the stride of a single element may be any
            for n, stride in zip(shape, strides, strict=True)
        ]
        buffer = elements[tensor.offset :].view(np.uint8)
        array = np.ndarray(shape, dtype, buffer, strides=steps)
        array.flags.writeable = False
        return array

    def _elements(self, storage: Storage, dtype: np.dtype) -> np.ndarray:
        if storage.key not in self._storages:
            data = np.frombuffer(_slice(self._content, *self._locate(storage.key)), np.uint8)
            self._storages[storage.key] = data
        data = self._storages[storage.key]
        start, size = storage.start * storage.dtype.itemsize, storage.numel * storage.dtype.itemsize
        if start < 0 or size < 0 or start + size > len(data) or size % dtype.itemsize:
            raise WeightsError(
                f"storage {storage.key!r} has {len(data):,} bytes, {start + size:,} announced"
            )
        return _native(data[start : start + size], dtype, self._big_endian)


def _native(data: np.ndarray, dtype: np.dtype, big_endian: bool) -> np.ndarray:
    if not big_endian:
        return data.view(dtype)
    part = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    return data.view(f"u{part}").byteswap().view(dtype)


# ---- what the saved object means -----------------------------------------------------------------


def _split(value: Any, reader: _TensorReader) -> _Contents:
    """Parts the saved object into its state dict and its small plain entries."""
    if not isinstance(value, dict):
        raise WeightsError(f"holds a {type(value).__name__}, not a dict of weights. {REMEDY}")
    entries, rest = None, value
    for name in _STATE_DICT_NAMES:
        if _has_tensors(value.get(name)):
            entries, rest = value[name], {k: v for k, v in value.items() if k != name}
            for key, entry in entries.items():
                if not _is_tensor(entry):
                    kind = type(entry).__name__
                    raise WeightsError(f"entry {key!r} of {name!r} is a {kind}, not a tensor")
            break
    else:
        if not _has_tensors(value):
            names = ", ".join(sorted(repr(key)[:40] for key in value)[:20])
            wanted = ", ".join(map(repr, _STATE_DICT_NAMES))
            raise WeightsError(
                f"holds no state dict: no tensors at the top nor under {wanted}, "
                f"only the entries {names or '(none)'}. {REMEDY}"
            )
        entries = {k: v for k, v in value.items() if _is_tensor(v)}
        rest = {k: v for k, v in value.items() if not _is_tensor(v)}

    state_dict = {}
    for key, entry in entries.items():
        if not isinstance(key, str):
            raise WeightsError(f"a state dict with the key {key!r}, which is not text")
        try:
            state_dict[key] = reader.read(entry) if isinstance(entry, Tensor) else entry.value
        except ValueError as error:
            raise WeightsError(f"tensor {key!r}: {error}") from error
    metadata = {}
    for key, entry in rest.items():
        with contextlib.suppress(_NotPlainError):
            metadata[str(key)] = _plain(entry)
    return state_dict, metadata


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Array) and value.value is not None)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(map(_is_tensor, value.values()))


class _NotPlainError(Exception):
    """A tensor among them, or too many or too deep, as shared or circular containers can be."""


def _plain(value: Any) -> Any:
    """A copy of builtin containers, scalars and small NumPy arrays."""
    budget = _METADATA_LIMIT

    def copy(value: Any, depth: int) -> Any:
        nonlocal budget
        if isinstance(value, Array):
            value = value.value
        budget -= value.size if isinstance(value, np.ndarray) else 1
        if isinstance(value, str | bytes | bytearray):
            budget -= len(value)
        if budget < 0 or depth > 32:
            raise _NotPlainError
        match value:
            case None | bool() | int() | float() | complex() | str() | bytes() | np.ndarray():
                return value
            case dict():
                return {key: copy(item, depth + 1) for key, item in value.items()}
            case list():
                return [copy(item, depth + 1) for item in value]
            case tuple():
                return tuple(copy(item, depth + 1) for item in value)
            case set() | frozenset() | bytearray():
                return value
        raise _NotPlainError

    return copy(value, 0)
