"""Reads the pickles in PyTorch files with an interpreter that can only build inert values.

Python's unpickler imports and calls whatever a pickle names. This one interprets the opcodes that
`pickletools` decodes and has a fixed list of globals, each mapped to a function in this file that
returns tensor descriptions, containers or scalars. Objects from the packages in `_FOREIGN`, which
training scripts use for configs, become an inert `Foreign`; every other global is rejected by name,
even if it is never called. Nothing is imported, no attribute is looked up by a name from the file,
and the file cannot request allocations larger than itself. What a small file could still request by
repetition is bounded ("limits" below).

Tensors become `Tensor`, a description of their location in a storage, so that callers only read the
storages they need (an optimiser's moments stay on disk).
"""

import io
import itertools
import mmap
import pickletools
import re
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, TypeVar, cast

import ml_dtypes
import numpy as np

from diffdepth_jax.errors import WeightsError

REMEDY = (
    "Where the file was created, save only the weights: torch.save(model.state_dict(), "
    "'weights.pt') or safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of `numel` elements that starts `start` elements into the storage record `key`."""

    key: str
    dtype: np.dtype
    start: int
    numel: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Array:
    """A NumPy array in the pickle; its BUILD opcode sets `value`."""

    def __init__(self, value: np.ndarray | None = None) -> None:
        self.value = value


class Attributes(dict):
    """The attributes of an `argparse.Namespace`."""


class Foreign(dict):
    """An ignored object from a foreign package; a dict, because some such objects are."""


class Unpickled(NamedTuple):
    """A pickle's object, and the element type of each storage record that it refers to."""

    value: Any
    storages: dict[str, np.dtype]


def load(stream: io.BytesIO | mmap.mmap) -> Unpickled:
    """Reads one pickle and leaves the stream positioned after it.

    Raises:
        WeightsError: if the pickle names a global that is not listed, uses an opcode that PyTorch
            files do not need, or is malformed or truncated.
    """
    machine = _Machine()
    try:
        opcodes = pickletools.genops(cast(IO[bytes], stream))  # an mmap reads like a file
        for opcode, argument, _ in itertools.islice(opcodes, _MAX_OPCODES):
            machine.step(opcode.name, argument)
        if next(opcodes, None) is not None:
            raise WeightsError(f"a pickle with more than {_MAX_OPCODES:,} opcodes. {REMEDY}")
        return Unpickled(machine.stack.pop(), machine.storages)
    except WeightsError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise WeightsError(f"a truncated or malformed pickle ({error})") from error
    except (RecursionError, MemoryError) as error:
        raise WeightsError(f"a pickle nested too deeply or too large. {REMEDY}") from error


# ---- limits --------------------------------------------------------------------------------------
#
# All are far above what training scripts save, yet a file that reaches every limit only costs
# seconds and a few hundred megabytes.

_MAX_OPCODES = 2_000_000
"""A one-byte opcode can create an object of up to 200 bytes; a model with its optimiser has 200,000
opcodes."""

_MAX_COPIED, _ELEMENT = 2**26, 32
"""Bytes that constructors may copy, and the cost of a container element. Tensor data are in
storages and do not count."""

_MAX_NUMBERS_AS_KEYS = 10_000
"""Keys and set elements that are not strings. Unlike strings, numbers can be chosen to have equal
hashes, and then n of them take n**2 comparisons. An optimiser has one per parameter."""

_MAX_KEY_BITS, _MAX_KEY_ITEMS = 128, 8
"""Limits for integers and tuples as keys, whose hash is computed at every use."""

_MAX_DIMENSIONS = 64
"""NumPy's limit."""


@dataclass(frozen=True, eq=False)
class _StorageType:
    dtype: np.dtype


class _Keys:
    """Checks and counts keys and set elements; a call returns its argument.

    Only flat values are allowed, as hashing deeply shared tuples would take forever.
    """

    def __init__(self) -> None:
        self._numbers = 0

    def __call__(self, value: Any) -> Any:
        if isinstance(value, _ForeignClass):  # as in old Lightning callbacks
            return value.name
        if isinstance(value, str | bytes):
            return value
        if isinstance(value, tuple):
            flat = len(value) <= _MAX_KEY_ITEMS and all(map(_is_small_scalar, value))
        else:
            flat = _is_small_scalar(value)
        if not flat:
            raise TypeError(f"a key that is a {type(value).__name__} or too large")
        self._numbers += 1
        if self._numbers > _MAX_NUMBERS_AS_KEYS:
            raise WeightsError(
                f"a pickle with more than {_MAX_NUMBERS_AS_KEYS:,} keys that are not strings. "
                f"{REMEDY}"
            )
        return value


def _is_small_scalar(value: Any) -> bool:
    if isinstance(value, int):
        return value.bit_length() <= _MAX_KEY_BITS
    return isinstance(value, type(None) | float | complex | str | bytes)


@dataclass(frozen=True, eq=False)
class _Constructor:
    """A function of the arguments in the file; with `keyed`, it takes a `_Keys` first."""

    build: Callable[..., Any]
    keyed: bool = False


@dataclass(frozen=True, eq=False)
class _ForeignClass:
    name: str


class _Dtype:
    """A `numpy.dtype`, whose byte order is set later by BUILD."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


class _Inert:
    """A class that is named (for example as a default factory) but never called."""


# ---- constructors: what the known globals do -----------------------------------------------------
#
# Arguments are untrusted. They are never hashed, printed or compared before their type is known:
# nested tuples with shared items can take forever to hash or print.


def _tensor(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    *_: object,
    dtype: np.dtype | None = None,
) -> Tensor:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    (offset,) = _sizes((offset,))
    return Tensor(storage, dtype or storage.dtype, offset, _sizes(shape), _sizes(strides))


def _tensor_v2(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object,
    hooks: object,
    metadata: object = None,
) -> Tensor:
    if metadata:
        raise ValueError("a lazily conjugated or negated tensor")
    return _tensor(storage, offset, shape, strides)


def _tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> Tensor:
    return _tensor(storage, offset, shape, strides, dtype=_TORCH_DTYPES[_of_type(dtype, str)])


def _parameter(data: object, *_: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise TypeError("a parameter without a tensor")
    return data


def _device(kind: object, index: object = None) -> str:
    kind = _of_type(kind, str)  # before it is printed
    return kind if index is None else f"{kind}:{_of_type(index, int)}"


def _mapping(keys: _Keys, items: Any = ()) -> dict[Any, Any]:
    pairs = items.items() if isinstance(items, dict) else items
    return {keys(key): value for key, value in pairs}


def _default_dict(keys: _Keys, factory: object = None, items: Any = ()) -> dict[Any, Any]:
    if not isinstance(factory, _Constructor | _Inert | None):
        raise TypeError("a default factory that is not a class")
    return _mapping(keys, items)


def _elements(kind: type[set] | type[frozenset]) -> Callable[..., set | frozenset]:
    def build(keys: _Keys, items: object = ()) -> set | frozenset:
        if not isinstance(items, list | tuple):
            raise TypeError(f"{kind.__name__} of something other than a list")
        return kind(map(keys, items))

    return build


def _encode(text: Any, encoding: object) -> bytes:
    # How pickles below protocol 3 encode bytes.
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("text in an encoding other than latin1")
    return str.encode(text, "latin1")


def _bytes(*args: object) -> bytes:
    if args:
        raise ValueError("bytes() with arguments")
    return b""


def _bytearray(*args: object) -> bytearray:
    if len(args) == 1:
        return bytearray(_of_type(args[0], bytes))  # never with a number, which would be a size
    return bytearray(_encode(*args) if args else b"")


def _complex(real: object, imaginary: object = 0.0) -> complex:
    return complex(_of_type(real, float), _of_type(imaginary, float))


def _numpy_dtype(code: object, *_: object) -> _Dtype:
    code = _of_type(code, str)
    if not re.fullmatch(r"[biufcSU]\d+", code):
        raise WeightsError(
            f"a NumPy array or scalar of dtype {code!r}, which is not a plain number or string (an "
            f"object array may hide another pickle). {REMEDY}"
        )
    return _Dtype(np.dtype(code))


def _numpy_scalar(dtype: object, data: Any) -> object:
    dtype = _of_type(dtype, _Dtype).dtype
    return np.frombuffer(data, dtype, 1).item() if dtype.itemsize else dtype.type().item()


def _numpy_array(*_: object) -> Array:
    return Array()


def _numpy_from_buffer(data: Any, dtype: object, shape: object, order: object, *_: object) -> Array:
    array = np.frombuffer(data, _of_type(dtype, _Dtype).dtype)
    # NumPy checks which order it is.
    return Array(array.reshape(_sizes(shape), order=cast(Any, _of_type(order, str))))


def _sizes(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int for value in values):
        raise TypeError("sizes that are not integers")
    if len(values) > _MAX_DIMENSIONS or any(abs(value) >= 2**63 for value in values):
        raise ValueError(f"{len(values)} sizes, or one with more than 63 bits")
    return tuple(values)


_TORCH_DTYPES = {
    f"torch.{name}": np.dtype(kind)
    for name, kind in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "complex128": np.complex128,
        "complex64": np.complex64,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "bool": np.bool_,
    }.items()
}

_STORAGE_DTYPES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.ComplexFloatStorage": "complex64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.UntypedStorage": "uint8",
    "torch.storage.UntypedStorage": "uint8",
}

_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _sizes,
    "torch.device": _device,
    "argparse.Namespace": lambda: Attributes(),
    "builtins.complex": _complex,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _encode,
    "numpy.dtype": _numpy_dtype,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray._reconstruct": _numpy_array,
    "numpy._core.numeric._frombuffer": _numpy_from_buffer,
}

_KEYED_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _default_dict,
    "builtins.set": _elements(set),
    "builtins.frozenset": _elements(frozenset),
}

_GLOBALS: dict[str, Any] = {
    **{name: name for name in _TORCH_DTYPES},
    **{k: _StorageType(_TORCH_DTYPES[f"torch.{v}"]) for k, v in _STORAGE_DTYPES.items()},
    **{f"builtins.{k}": _Inert() for k in ("bool", "int", "float", "str", "list", "tuple", "dict")},
    "numpy.ndarray": _Inert(),
    **{name: _Constructor(build) for name, build in _BUILDERS.items()},
    **{name: _Constructor(build, keyed=True) for name, build in _KEYED_BUILDERS.items()},
}

# Globals with these names, or in these packages, are not weights and are ignored: configs,
# callbacks and paths in files from PyTorch Lightning and others.
_FOREIGN = (
    *("pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics"),
    *(
        "yacs.config",
        "fvcore.common.config",
        "config.config.CfgNode",
        "omegaconf",
        "easydict",
        "addict",
        "ml_collections",
        "mmengine",
        "mmcv",
    ),
    *("pathlib", "datetime", "typing.Any", "collections.deque", "torch.torch_version"),
)

_RENAMED = {"__builtin__.": "builtins.", "numpy.core.": "numpy._core."}  # by Python 2 and NumPy 1


# ---- the machine ---------------------------------------------------------------------------------

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, np.dtype] = {}
        self.copied = 0
        self.keys = _Keys()

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
            return
        if opcode in _LITERALS:
            stack.append(argument)
            return
        match opcode:
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                if len(stack) < count:
                    raise IndexError("a tuple with more items than the stack")
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                self._push(tuple(self._pop_mark()))
            case "EMPTY_TUPLE":
                stack.append(())
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                self._count(*_of_type(arguments, tuple))
                stack[-1] = self._construct(stack[-1], arguments)
            case "NEWOBJ_EX":
                keywords, arguments = stack.pop(), stack.pop()
                if keywords and not isinstance(stack[-1], _ForeignClass):
                    raise ValueError("a constructor with keyword arguments")
                self._count(*_of_type(arguments, tuple))
                stack[-1] = self._construct(stack[-1], arguments)
            case "BUILD":
                state = stack.pop()
                self._count(state)
                _set_state(stack[-1], state)
            case "BINPERSID":
                stack[-1] = self._storage(*stack[-1])
            case "GLOBAL":
                stack.append(_find_global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_find_global(f"{_of_type(module, str)}.{_of_type(name, str)}"))
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = self._pop_mark()
                self._push({})
                self._set_items(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._pop_mark())
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                self._push(self._pop_mark())
            case "APPEND":
                item = stack.pop()
                self._append([item])
            case "APPENDS":
                self._append(self._pop_mark())
            case "EMPTY_SET":
                stack.append(set())
            case "ADDITEMS":
                items = self._pop_mark()
                _of_type(self.stack[-1], set).update(map(self.keys, items))
            case "FROZENSET":
                self._push(frozenset(map(self.keys, self._pop_mark())))
            case "POP":
                stack.pop() if stack else self._pop_mark()
            case "POP_MARK":
                self._pop_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "INST":
                _find_global(argument.replace(" ", ".", 1))
                raise WeightsError(f"the pickle opcode INST for {argument!r}. {REMEDY}")
            case _:  # extension registry, text persistent ids, out-of-band buffers
                raise WeightsError(f"the pickle opcode {opcode}, which is not allowed. {REMEDY}")

    def _count(self, *values: Any) -> None:
        """Limits what constructors copy: a small file may pass one long value to many of them."""
        for value in values:
            if isinstance(value, str | bytes | bytearray):
                self.copied += len(value)
            elif isinstance(value, Sized):
                self.copied += _ELEMENT * len(value)
        if self.copied > _MAX_COPIED:
            raise WeightsError(f"a pickle that copies one value too many times. {REMEDY}")

    def _construct(self, constructor: Any, arguments: Any) -> Any:
        if isinstance(constructor, _ForeignClass):
            return Foreign()
        if not isinstance(constructor, _Constructor):
            raise TypeError(f"a call to a {type(constructor).__name__}")
        keys = [self.keys] if constructor.keyed else []
        return constructor.build(*keys, *_of_type(arguments, tuple))

    def _set_items(self, items: list[Any]) -> None:
        """Adds alternating keys and values to the dict on the stack."""
        target = _of_type(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.keys(key)] = value

    def _append(self, items: list[Any]) -> None:
        """Appends items to the list on the stack."""
        if not isinstance(self.stack[-1], Foreign):
            _of_type(self.stack[-1], list).extend(items)

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _storage(
        self,
        tag: object,
        storage_type: object,
        key: object,
        location: object,
        numel: object,
        view: Any = None,
    ) -> Storage:
        """The persistent id of a storage; `view` is (key, start, numel) in the legacy format."""
        if tag != "storage" or not isinstance(storage_type, _StorageType):
            raise WeightsError(f"a persistent object that is not a storage. {REMEDY}")
        dtype = storage_type.dtype
        key = _of_type(key, str)
        if self.storages.setdefault(key, dtype) != dtype:
            raise ValueError(f"storage {key[:40]!r} is both {self.storages[key]} and {dtype}")
        start = 0
        if view is not None:
            _, start, numel = view
        start, numel = _sizes((start, numel))
        return Storage(key, dtype, start, numel)


def _find_global(name: str) -> Any:
    for old, new in _RENAMED.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
    if name.startswith(tuple(f"{package}." for package in _FOREIGN)) or name in _FOREIGN:
        return _ForeignClass(name)
    if name not in _GLOBALS:
        raise WeightsError(
            f"the pickle asks for {name!r}, which is not a tensor, a container or a plain value; "
            f"it was not imported and nothing was executed. {REMEDY}"
        )
    return _GLOBALS[name]


def _set_state(target: Any, state: Any) -> None:
    match target:
        case Attributes():
            state = _of_type(state, dict)
            target.update({_of_type(name, str): value for name, value in state.items()})
        case dict():  # a state dict's `_metadata`: module versions, not needed here
            pass
        case _Dtype():
            # NumPy checks which order it is.
            target.dtype = target.dtype.newbyteorder(cast(Any, _of_type(state[1], str)))
        case Array():
            _, shape, dtype, is_fortran, data = state
            order = "F" if is_fortran else "C"
            target.value = _numpy_from_buffer(data, dtype, shape, order).value
        case _:
            raise TypeError(f"a state for a {type(target).__name__}")


def _of_type(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} instead of a {kind.__name__}")
    return value
