"""A tiny writer of PyTorch's two formats, byte by byte, so that reading tests need no torch."""

import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
    np.dtype(np.complex64): "ComplexFloatStorage",
}
CALL, NEW, PERSISTENT = pickle.REDUCE, pickle.NEWOBJ, pickle.BINPERSID


class Raw:
    """Opcodes that leave one value on the stack."""

    def __init__(self, opcodes: bytes):
        self.opcodes = opcodes


def dump(value) -> bytes:
    """The opcodes of a value, at protocol 2 and without a memo."""
    match value:
        case Raw():
            return value.opcodes
        case dict():
            pairs = b"".join(dump(key) + dump(item) for key, item in value.items())
            return b"}(" + pairs + b"u"
        case list() | tuple():
            end = b"l" if isinstance(value, list) else b"t"
            return b"(" + b"".join(map(dump, value)) + end
        case _:
            return pickle.dumps(value, 2)[2:-1]


def name(module_and_name: str) -> Raw:
    module, _, tail = module_and_name.rpartition(".")
    return Raw(f"c{module}\n{tail}\n".encode())


def call(function: str, *arguments) -> Raw:
    return Raw(name(function).opcodes + dump(arguments) + CALL)


def namespace(**attributes) -> Raw:
    return Raw(name("argparse.Namespace").opcodes + b")" + NEW + dump(attributes) + pickle.BUILD)


def tensor(key, dtype, numel, shape, strides=None, offset=0, view=(), storage=None) -> Raw:
    strides = strides or [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    kind = name(f"torch.{storage or STORAGES[np.dtype(dtype)]}")
    identity = Raw(dump(("storage", kind, key, "cuda:0", numel, *view)) + PERSISTENT)
    hooks = call("collections.OrderedDict")
    return call(
        "torch._utils._rebuild_tensor_v2",
        *(identity, offset, tuple(shape), tuple(strides), False, hooks),
    )


def whole(key, array, view=()) -> Raw:
    return tensor(key, array.dtype, array.size, array.shape, view=view)


def write_zip(path, value, storages, root="archive/", byteorder=b"little", extra=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}data.pkl", b"\x80\x02" + dump(value) + b".")
        archive.writestr(f"{root}.format_version", b"1")
        archive.writestr(f"{root}.storage_alignment", b"64")
        if byteorder:
            archive.writestr(f"{root}byteorder", byteorder)
        for key, array in storages.items():
            info = zipfile.ZipInfo(f"{root}data/{key}")
            info.extra = struct.pack("<HH", 0x4246, 7) + b"Z" * 7  # PyTorch pads here to align
            archive.writestr(info, array.tobytes())
        archive.writestr(f"{root}version", b"3\n")
        for extra_name in extra:
            archive.writestr(f"{root}{extra_name}", b"")


def write_legacy(path, value, storages):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    with open(path, "wb") as file:
        for item in (0x1950A86A20F9469CFC6C, 1001, system):
            file.write(pickle.dumps(item, 2))
        file.write(b"\x80\x02" + dump(value) + b".")
        file.write(pickle.dumps(sorted(storages), 2))
        for key in sorted(storages):
            file.write(struct.pack("<q", storages[key].size) + storages[key].tobytes())
