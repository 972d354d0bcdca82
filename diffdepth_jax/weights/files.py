"""Reads weights from files: PyTorch's two formats (without PyTorch) and safetensors.

PyTorch writes either a zip archive (`<root>/data.pkl` and one uncompressed record
`<root>/data/<key>` per storage; the default since 1.6) or, in older versions and on request, a
stream of pickles followed by the raw storages. `torch_pickle` reads both without executing
anything.
"""

import contextlib
import io
import math
import mmap
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from diffdepth_jax import atomic
from diffdepth_jax.errors import FileError, MissingFileError, WeightsError, naming_file
from diffdepth_jax.weights import torch_pickle
from diffdepth_jax.weights.text import shown
from diffdepth_jax.weights.torch_pickle import REMEDY, Array, Storage, Tensor

# Names under which training scripts store the state dict; DiffusionDepth uses "net".
_STATE_DICT_NAMES = ("net", "state_dict", "model", "model_state_dict")
_BYTE_ORDERS = {b"little": False, b"big": True}

# Limits on what a small file may expand to: names can share a tensor, and entries a list.
_MAX_REPEATED = 8  # total bytes of all tensors, per byte of the file
_METADATA_LIMIT = 100_000  # values and characters per entry
_ALL_METADATA_LIMIT = 1_000_000  # for all entries
_NUMBER_KEY = 100  # cost of a numeric key, as such keys may all have the same hash
_MAX_BITS = 4096  # of an integer; Python does not print more than 4300 digits
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weights file.

    Attributes:
        state_dict: maps names to arrays. A `module.` prefix shared by all names is removed. Arrays
            are read-only, and still share memory if they shared a storage.
        metadata: the file's other small, plain entries, such as `args` (the training script's
            Namespace, as a dict) or `epoch`. For safetensors files, maps names to text. For others,
            names to None, bool, int of up to 4096 bits, float, complex, str, bytes, bytearray,
            NumPy arrays of numbers or text, and lists, tuples, sets and dicts of these, at most 32
            levels deep and a million in total; keys may also be numbers or tuples. They are not
            sanitised: text may contain control characters, and `args` may have any of these types.
    """

    state_dict: dict[str, np.ndarray]
    metadata: dict[str, Any]


def read(path: str | os.PathLike[str]) -> WeightsFile:
    """Reads a `.pt`/`.pth` file (zip or legacy) or a `.safetensors` file, detected by content.

    The state dict is the entry `net`, `state_dict`, `model` or `model_state_dict` of the saved
    object, or that object itself. Storages that it does not use are not read.

    Raises:
        MissingFileError: if the file does not exist.
        FileError: if it cannot be read.
        WeightsError: if it is truncated, damaged, in a different format or has no state dict, or if
            its pickle asks for anything other than tensors, containers and plain values (named in
            the message), or for far more memory than the file's size.
    """
    path = Path(path)
    with naming_file(path, "read"):
        if not path.exists():
            raise MissingFileError(f"{path} does not exist")
        if path.is_dir():
            raise WeightsError(f"{path} is a directory; expected a .pt, .pth or .safetensors file")
        if path.stat().st_size == 0:
            raise WeightsError(f"{path} is empty; copy or download it again")
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            try:
                if content[:4] == b"PK\x03\x04":
                    state_dict, metadata = _read_zip(path, content)
                elif (
                    content[8:9] == b"{"
                ):  # checked first, as the length before it may look like a pickle
                    state_dict, metadata = _read_safetensors(path)
                elif content[:1] == b"\x80":
                    state_dict, metadata = _read_legacy(content)
                else:
                    raise WeightsError(f"{_describe(content[:64])}. {REMEDY}")
            except ValueError as error:
                raise WeightsError(f"{path}: {shown(str(error))}") from error
    if all(name.startswith("module.") for name in state_dict):
        state_dict = {name.removeprefix("module."): a for name, a in state_dict.items()}
    return WeightsFile(state_dict, metadata)


def write_safetensors(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a state dict as safetensors, atomically.

    Raises:
        FileError: if the file cannot be written.
    """
    # The package writes an array's memory as is, so transposed arrays must be copied first.
    arrays = {name: np.require(array, requirements="C") for name, array in state_dict.items()}
    strings = None if metadata is None else dict(metadata)

    def save(file: BinaryIO) -> None:
        mode = stat.S_IMODE(os.stat(file.name).st_mode)
        # By file name, as `save` would hold a second copy of all arrays in memory.
        safetensors.numpy.save_file(arrays, file.name, strings)
        os.chmod(file.name, mode)  # the package ignores the umask and makes files private

    try:
        atomic.write(path, save)
    except safetensors.SafetensorError as error:  # raised by the package for a full disk
        raise FileError(f"{path} cannot be written: {error}") from error


# ---- formats -------------------------------------------------------------------------------------

_Contents = tuple[dict[str, np.ndarray], dict[str, Any]]


def _read_zip(path: Path, content: mmap.mmap) -> _Contents:
    try:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise WeightsError(
            f"a truncated or damaged zip archive ({error}); copy the file again"
        ) from error
    pickles = [name for name in records if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    if len(pickles) != 1:
        raise WeightsError(f"a zip archive without PyTorch's data.pkl. {REMEDY}")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in records:
        raise WeightsError(
            "a TorchScript archive, which contains code. Save only its weights: "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"
        )

    def record(name: str) -> bytes:
        if name not in records:
            raise WeightsError(f"the archive has no record {name!r}; copy the file again")
        info = records[name]
        header = content[info.header_offset : info.header_offset + 30]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise WeightsError(f"record {name!r} is compressed, which PyTorch never does. {REMEDY}")
        if header[:4] != b"PK\x03\x04" or len(header) < 30:
            raise WeightsError(f"record {name!r} is damaged; copy the file again")
        # Use the lengths in the local header: PyTorch pads it to align the data.
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        data = _slice(content, start, info.file_size)
        # Zero means no checksum: PyTorch can be told not to compute it (set_crc32_options).
        if info.CRC and zlib.crc32(data) != info.CRC:
            raise WeightsError(f"record {name!r} is damaged (CRC-32); copy the file again")
        return data

    value = torch_pickle.load(io.BytesIO(record(pickles[0]))).value
    byteorder = record(f"{root}byteorder") if f"{root}byteorder" in records else b"little"
    if byteorder not in _BYTE_ORDERS:
        raise WeightsError(
            f"byteorder is {byteorder[:20]!r}, neither 'little' nor 'big'; copy the file again"
        )
    reader = _TensorReader(
        len(content),
        lambda key: record(f"{root}data/{key}"),
        big_endian=_BYTE_ORDERS[byteorder],
    )
    return _split(value, reader)


def _read_legacy(content: mmap.mmap) -> _Contents:
    if torch_pickle.load(content).value != _LEGACY_MAGIC:
        raise WeightsError(f"a pickle, but not one written by torch.save. {REMEDY}")
    protocol = torch_pickle.load(content).value
    if protocol != _LEGACY_PROTOCOL:
        raise WeightsError(f"an unknown version of PyTorch's legacy format. {REMEDY}")
    torch_pickle.load(content)  # the writing machine; storages are always little-endian
    value, dtypes = torch_pickle.load(content)
    keys = torch_pickle.load(content).value

    spans: dict[str, tuple[int, int]] = {}
    position = content.tell()
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in dtypes:
            raise WeightsError("a storage without a tensor; copy the file again")
        (numel,) = struct.unpack("<Q", _slice(content, position, 8))
        spans[key] = position + 8, numel * dtypes[key].itemsize
        position += 8 + spans[key][1]
    if position > len(content):
        raise WeightsError(
            f"truncated: expected {position:,} bytes, found {len(content):,}; copy the file again"
        )

    def storage(key: str) -> bytes:
        if key not in spans:
            raise WeightsError(f"the file has no storage {key!r}; copy it again")
        return _slice(content, *spans[key])

    return _split(value, _TensorReader(len(content), storage))


def _read_safetensors(path: Path) -> _Contents:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.get_tensors(), dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"a truncated or damaged safetensors file ({error}); copy it again"
        ) from error
    except AttributeError as error:  # raised for types that NumPy does not support
        raise WeightsError(f"contains numbers of an unsupported type ({error})") from error


def _describe(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; download the real file with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page, probably from a failed download"
    return f"neither a PyTorch nor a safetensors file (it starts with {start[:16]!r})"


def _slice(content: mmap.mmap, start: int, size: int) -> bytes:
    data = content[start : start + size]
    if len(data) != size:
        raise WeightsError(f"truncated: expected {size:,} bytes at {start:,}; copy the file again")
    return data


# ---- tensors -------------------------------------------------------------------------------------


class _TensorReader:
    """Builds arrays from tensor descriptions, reading each storage once and only when needed."""

    def __init__(
        self, file_size: int, read: Callable[[str], bytes], *, big_endian: bool = False
    ) -> None:
        self._file_size = file_size
        self._read = read
        self._big_endian = big_endian
        self._storages: dict[tuple[str, int], np.ndarray] = {}
        self._bytes_read = self._bytes_shaped = 0

    def read(self, tensor: Tensor) -> np.ndarray:
        shape, strides, dtype = tensor.shape, tensor.strides, tensor.dtype
        size = math.prod(shape)
        if min((*shape, *strides, tensor.offset), default=0) < 0 or len(shape) != len(strides):
            raise WeightsError(
                f"invalid shape {shape} with strides {strides} at offset {tensor.offset}"
            )
        # An expanded tensor is larger than its storage, but must not be larger than the file.
        if size * dtype.itemsize > self._file_size:
            raise WeightsError(f"shape {shape} needs more bytes than the whole file")
        self._bytes_shaped += size * dtype.itemsize
        if self._bytes_shaped > _MAX_REPEATED * self._file_size:
            raise WeightsError(
                f"the tensors need more than {_MAX_REPEATED} times the bytes of the file"
            )
        if size == 0:
            return np.empty(shape, dtype)
        elements = self._elements(tensor.storage, dtype)
        last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if tensor.offset + last >= len(elements):
            raise WeightsError(
                f"shape {shape} with strides {strides} at offset {tensor.offset} exceeds its "
                f"storage of {len(elements):,} elements"
            )
        steps = [
            stride * dtype.itemsize if n > 1 else 0  # a single element may have any stride
            for n, stride in zip(shape, strides, strict=True)
        ]
        buffer = elements[tensor.offset :].view(np.uint8)
        array = np.ndarray(shape, dtype, buffer, strides=steps)
        array.flags.writeable = False
        return array

    def _elements(self, storage: Storage, dtype: np.dtype) -> np.ndarray:
        data = self._bytes(storage.key, dtype)
        start, size = storage.start * storage.dtype.itemsize, storage.numel * storage.dtype.itemsize
        if start < 0 or size < 0 or start + size > len(data) or size % dtype.itemsize:
            raise WeightsError(
                f"storage {storage.key!r} has {len(data):,} bytes, but {start + size:,} were "
                "declared"
            )
        return data[start : start + size].view(dtype)

    def _bytes(self, key: str, dtype: np.dtype) -> np.ndarray:
        """A storage's bytes, read once; byte-swapped for this type if the file is big-endian."""
        if (key, 1) not in self._storages:
            data = np.frombuffer(self._read(key), np.uint8)
            self._bytes_read += len(data)
            if self._bytes_read > self._file_size:
                raise WeightsError("the storages overlap: they have more bytes than the whole file")
            self._storages[key, 1] = data
        width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
        if not self._big_endian or width == 1:
            return self._storages[key, 1]
        if (key, width) not in self._storages:
            data = self._storages[key, 1]
            numbers = data[: len(data) // width * width].view(f"u{width}")
            self._storages[key, width] = numbers.byteswap().view(np.uint8)
        return self._storages[key, width]


# ---- the saved object ---------------------------------------------------------------------------


def _split(value: Any, reader: _TensorReader) -> _Contents:
    """Splits the saved object into its state dict and its small, plain entries."""
    if not isinstance(value, dict):
        raise WeightsError(f"contains a {type(value).__name__}, not a dict of weights. {REMEDY}")
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
                f"contains no state dict: no tensors at the top level or under {wanted}, only the "
                f"entries {names or '(none)'}. {REMEDY}"
            )
        entries = {k: v for k, v in value.items() if _is_tensor(v)}
        rest = {k: v for k, v in value.items() if not _is_tensor(v)}

    state_dict = {}
    for key, entry in entries.items():
        if not isinstance(key, str):
            raise WeightsError(f"a state dict with the key {key!r}, which is not a string")
        try:
            state_dict[key] = reader.read(entry) if isinstance(entry, Tensor) else entry.value
        except ValueError as error:
            raise WeightsError(f"tensor {key!r}: {error}") from error
    return state_dict, _plain_entries(rest)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Array) and value.value is not None)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(map(_is_tensor, value.values()))


class _NotPlainError(Exception):
    """Contains a tensor or foreign object, or is too large or deep, as shared or circular
    containers can be."""


def _plain_entries(entries: Mapping[Any, Any]) -> dict[str, Any]:
    """The entries that are plain and small, up to a total limit."""
    found, left = {}, _ALL_METADATA_LIMIT
    for key, entry in entries.items():
        budget = _Budget(min(left, _METADATA_LIMIT))
        with contextlib.suppress(_NotPlainError):
            found[str(key)] = _plain(entry, budget)
        left -= budget.spent
    return found


class _Budget:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.spent = 0

    def spend(self, count: int) -> None:
        if self.spent + count > self._limit:
            raise _NotPlainError
        self.spent += count


def _plain(value: Any, budget: _Budget, depth: int = 0) -> Any:
    """A copy of builtin containers, scalars and small NumPy arrays."""
    if depth > 32:
        raise _NotPlainError
    if isinstance(value, Array):
        value = value.value
    budget.spend(1)
    match value:
        case torch_pickle.Foreign():
            raise _NotPlainError
        case None | bool() | float() | complex():
            return value
        case int() if value.bit_length() <= _MAX_BITS:
            return value
        case np.ndarray():
            budget.spend(value.size)
            return value
        case str() | bytes() | bytearray():
            budget.spend(len(value))
            return value
        case set() | frozenset():
            budget.spend(len(value))
            budget.spend(sum(map(_key_size, value)))
            return value
        case dict():
            budget.spend(len(value))
            budget.spend(sum(map(_key_size, value)))
            return {key: _plain(item, budget, depth + 1) for key, item in value.items()}
        case list():
            return [_plain(item, budget, depth + 1) for item in value]
        case tuple():
            return tuple(_plain(item, budget, depth + 1) for item in value)
    raise _NotPlainError


def _key_size(key: Any) -> int:
    return len(key) if isinstance(key, str | bytes) else _NUMBER_KEY
