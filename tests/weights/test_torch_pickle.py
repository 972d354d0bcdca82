"""The pickle machine against Python's pickler, and against malicious pickles."""

import argparse
import collections
import io
import os
import pickle
import struct
import subprocess

import numpy as np
import pytest

from diffdepth_jax.errors import WeightsError
from diffdepth_jax.weights import torch_pickle


def load(data: bytes):
    return torch_pickle.load(io.BytesIO(data)).value


def refusal(data: bytes) -> str:
    with pytest.raises(WeightsError) as info:
        load(data)
    return str(info.value)


VALUES = {
    "scalars": [None, True, False, 0, -1, 255, 65536, 2**40, -(2**90), 1.5, float("inf"), 2 - 1j],
    "text": ["", "ascii", "жар-птица 🔥", "x" * 300, b"", b"\x00\xff" * 200, bytearray(b"ab")],
    "containers": [[], [1], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"a": [{}]}, set()],
    "sets": [{1, 2}, frozenset({"a"}), {(1, "x"): 2, 3: None, b"k": 1.0}],
    "numpy scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("kitti"), np.str_("")],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", VALUES)
def test_plain_values_read_as_pickle_reads_them(name, protocol):
    value = VALUES[name]
    got = load(pickle.dumps(value, protocol))
    assert got == value
    assert [type(item) for item in got[:11]] == [
        type(item.item()) if isinstance(item, np.generic) else type(item) for item in value[:11]
    ]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_known_classes_become_inert(protocol):
    value = {
        "ordered": collections.OrderedDict(a=1, b=[2]),
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, x=[1]),
        "args": argparse.Namespace(max_depth=80.0, nested=argparse.Namespace(a=1)),
    }
    got = load(pickle.dumps(value, protocol))
    assert got["ordered"] == {"a": 1, "b": [2]}
    assert got["counter"] == {"a": 2, "b": 1}
    assert type(got["default"]) is dict and got["default"] == {"x": [1]}
    assert got["args"] == {"max_depth": 80.0, "nested": {"a": 1}}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(3, dtype=">i2"),
        np.array(7.5),
        np.zeros((0, 2), np.complex64),
        np.array(["a", "bc"]),
    ],
    ids=str,
)
def test_numpy_arrays(array, protocol):
    got = load(pickle.dumps(array, protocol)).value
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype and got.shape == array.shape


def test_names_of_numpy_1_and_python_2_are_known():
    data = pickle.dumps([np.arange(3), np.float64(2), {1}], 2)
    old = data.replace(b"numpy._core.", b"numpy.core.")
    assert old != data and b"__builtin__" in old
    array, number, numbers = load(old)
    np.testing.assert_array_equal(array.value, np.arange(3))
    assert (number, numbers) == (2.0, {1})


def test_shared_and_circular_containers_keep_their_identity():
    shared = [1]
    circle = [shared, shared]
    circle.append(circle)
    got = load(pickle.dumps(circle))
    assert got[0] is got[1] and got[2] is got


# ---- malicious pickles ---------------------------------------------------------------------------


class Reduced:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(sentinel) -> dict[str, bytes]:
    """Pickles that would create the file `sentinel`, by the name that must be refused."""
    touch = f"touch {sentinel}"
    code = f"open({str(sentinel)!r}, 'w')"
    text = pickle.BINUNICODE + struct.pack("<I", len(touch)) + touch.encode()

    def named(module, name, tail=b"\x85R."):  # the text as the only argument, call, stop
        def short(value):
            return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()

        return b"\x80\x04" + short(module) + short(name) + b"\x93" + text + tail

    getattr_chain = Reduced(
        Reduced(getattr, Reduced(__import__, "os"), "system"),
        touch,
    )
    object_array = np.array([Reduced(os.system, touch)], dtype=object)
    return {
        "posix.system": pickle.dumps(Reduced(os.system, touch)),
        "os.system": b"cos\nsystem\n" + text + b"\x85R.",
        "nt.system": b"\x80\x02cnt\nsystem\n" + text + b"\x85R.",
        "builtins.eval": pickle.dumps(Reduced(eval, code)),
        "builtins.exec": pickle.dumps(Reduced(exec, code), 2),
        "builtins.getattr": pickle.dumps(getattr_chain.call[0]),
        "subprocess.Popen": pickle.dumps(Reduced(subprocess.Popen, ["touch", str(sentinel)])),
        "builtins.__import__": pickle.dumps(Reduced(__import__, "os")),
        "torch.load": b"\x80\x02ctorch\nload\n" + text + b"\x85R.",
        "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n" + text + b"\x85R.",
        "collections.OrderedDict.fromkeys.__self__": named(
            "collections", "OrderedDict.fromkeys.__self__"
        ),
        "argparse.ArgumentParser": named("argparse", "ArgumentParser"),
        "numpy.testing.runstring": named("numpy", "testing.runstring"),
        "posixpath.os.system": named("posixpath", "os.system"),
        "pickle.loads": pickle.dumps(
            Reduced(pickle.loads, pickle.dumps(Reduced(os.system, touch)))
        ),
        "dtype 'O": pickle.dumps(object_array),
        # The name itself is refused, called or not; also as a default factory and through INST.
        "posix.unlink": pickle.dumps(os.unlink),
        "posix.popen": b"\x80\x02ccollections\ndefaultdict\ncposix\npopen\n\x85R.",
        "os.popen": b"(" + text + b"ios\npopen\n.",
        # Fetched twice through the memo.
        "os.remove": b"cos\nremove\nq\x000h\x00" + text + b"\x85R.",
    }


@pytest.mark.parametrize("name", hostile("x"))
def test_any_other_global_is_refused_by_name(name, tmp_path):
    sentinel = tmp_path / "it ran"
    text = refusal(hostile(sentinel)[name])
    assert name in text and "state_dict()" in text
    assert not sentinel.exists()


def call(module_and_name: bytes, *arguments) -> bytes:
    body = b"".join(pickle.dumps(argument, 2)[2:-1] for argument in arguments)
    return b"\x80\x02c" + module_and_name + b"\n(" + body + b"tR."


@pytest.mark.parametrize(
    "data",
    {
        "bytes of a size": call(b"__builtin__\nbytes", 2**40),
        "bytearray of a size": call(b"__builtin__\nbytearray", 2**40),
        "set of text": call(b"__builtin__\nset", "abc"),
        "a called builtin": call(b"__builtin__\nint", "9" * 100),
        "array larger than its data": call(
            b"numpy.core.numeric\n_frombuffer", bytearray(8), np.dtype("f8"), (9,), "C"
        ),
        "namespace with arguments": call(b"argparse\nNamespace", [("a", 1)]),
        "call of a string": b"\x80\x02X\x01\x00\x00\x00a)R.",
        "call of a dtype name": b"ctorch\nfloat32\n)R.",
        "state for a constructor": b"cargparse\nNamespace\n}(X\x05\x00\x00\x00build}ub.",
        "state for a storage type": b"ctorch\nFloatStorage\n}b.",
        "state that is not a dict": b"cargparse\nNamespace\n)\x81]b.",
        "list as a key": b"\x80\x02}]K\x01s.",
        "constructor as a key": b"\x80\x02}cargparse\nNamespace\nK\x01s.",
        "append to a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1) + b"aK\x01a.",
        "items of a list": b"\x80\x02]K\x01K\x02s.",
        "empty stack": b"\x80\x02.",
        "no mark": b"\x80\x02t.",
        "unknown memo": b"\x80\x02h\x07.",
        "tuple of too many": b"\x80\x02K\x01\x87.",
        "tensor without a storage": call(b"torch._utils\n_rebuild_tensor", 1, 0, (1,), (1,)),
        "odd items": b"\x80\x02}(K\x01u.",
        "no stop": b"\x80\x02K\x01",
        "cut": b"\x80\x02X\xff\xff\xff\x7fabc",
        "nothing": b"",
        "extension": b"\x80\x02\x82\x01.",
        "out-of-band buffer": b"\x80\x05\x97.",
        "text id": b"Pstorage\n.",
        "id that is not a storage": b"\x80\x02X\x06\x00\x00\x00module\x85Q.",
        "global without a name": b"\x80\x04K\x01K\x02\x93.",
    }.items(),
    ids=lambda item: item[0],
)
def test_misuse_of_known_parts_is_an_error(data):
    with pytest.raises(WeightsError):
        load(data[1])


def test_nested_sharing_takes_no_time():
    """Tuples nested 60 levels deep, each twice in the next: 2**60 items to traverse."""
    bomb = b"K\x01\x85" + b"2\x86" * 60
    load(b"\x80\x02" + bomb + b".")
    for tail in (b"\x85R.", b"K\x01s."):
        for head in (b"ctorch\nSize\n", b"}", b"ctorch\ndevice\n", b"cnumpy\ndtype\n"):
            refusal(b"\x80\x02" + head + bomb + tail)
    refusal(b"\x80\x04" + bomb + b"2\x93.")
    refusal(b"\x80\x04" + bomb + b"\x85Q.")


def test_a_device_of_shared_containers_is_not_printed():
    doubled = b"(lq\x00" + b"".join(b"](h%ch%ce" % (i, i) + b"q%c" % (i + 1) for i in range(20))
    with pytest.raises(WeightsError, match="list instead of a str"):
        load(doubled + b"ctorch\ndevice\nh\x14K\x01\x86R.")


def test_one_long_value_is_not_copied_over_and_over():
    once = b"cbuiltins\nbytearray\nh\x00\x85R0"
    data = b"B" + struct.pack("<I", 2**20) + bytes(2**20) + b"q\x00" + once * 100 + b"."
    with pytest.raises(WeightsError, match="copies one value too many times"):
        load(data)


def test_numbers_with_equal_hashes_are_limited(monkeypatch):
    """Multiples of 2**61 - 1 all hash to 0: n of them take n**2 comparisons."""
    monkeypatch.setattr(torch_pickle, "_MAX_NUMBERS_AS_KEYS", 100)
    numbers = [index * (2**61 - 1) for index in range(101)]
    texts = {str(number): None for number in numbers}
    for value in (dict.fromkeys(numbers), set(numbers), collections.Counter(numbers)):
        for protocol in (2, 4):
            assert "more than 100 keys" in refusal(pickle.dumps(value, protocol))
    assert "more than 100 keys" in refusal(pickle.dumps([{n: n} for n in numbers]))  # together
    assert load(pickle.dumps([texts, dict.fromkeys(numbers[:100])])) == [
        texts,
        dict.fromkeys(numbers[:100]),
    ]


@pytest.mark.parametrize("key", [2**200, (1,) * 9, (2**200,)], ids=["number", "tuple", "in tuple"])
def test_keys_that_are_slow_to_hash_are_refused(key):
    assert "a key that is" in refusal(pickle.dumps({key: 1}, 2))


def test_the_number_of_opcodes_is_limited(monkeypatch):
    monkeypatch.setattr(torch_pickle, "_MAX_OPCODES", 50)
    assert load(b"(" + b"\x8f" * 47 + b"l.") == [set()] * 47
    assert "more than 50 opcodes" in refusal(b"(" + b"\x8f" * 48 + b"l.")


@pytest.mark.parametrize("sizes", [(1,) * 65, (2**63,)], ids=["many", "large"])
def test_sizes_that_no_tensor_has_are_refused(sizes):
    """Even their product would take long: shapes can repeat one large number many times."""
    assert "sizes" in refusal(call(b"torch\nSize", sizes))
