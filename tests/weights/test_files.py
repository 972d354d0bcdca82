"""Weight files, written byte by byte as PyTorch does, so that no torch is needed."""

import json
import os
import pickle
import resource
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from diffdepth_jax.errors import FileError, MissingFileError, WeightsError
from diffdepth_jax.weights import files
from tests.weights.torch_writer import (
    PERSISTENT,
    Raw,
    call,
    dump,
    name,
    namespace,
    tensor,
    whole,
    write_legacy,
    write_zip,
)

ARRAYS = {
    "weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "bias": np.linspace(-1, 1, 5).astype(ml_dtypes.bfloat16),
    "half": np.linspace(0, 1, 3).astype(np.float16),
    "double": np.linspace(0, 1, 3),
    "count": np.array(7),
    "int": np.arange(3, dtype=np.int32),
    "short": np.arange(3, dtype=np.int16),
    "char": np.arange(-1, 3, dtype=np.int8),
    "byte": np.arange(3, dtype=np.uint8),
    "mask": np.array([[True, False]]),
    "complex": np.array([1 + 2j], np.complex64),
    "empty": np.zeros((0, 3), np.float32),
}
ARGS = {"max_depth": 80.0, "inference_steps": 20, "data_name": "KITTIDC", "milestones": [1, 2]}


def checkpoint(view=(), arrays=ARRAYS):
    keys = {key: str(index) for index, key in enumerate(arrays)}
    entries = {key: whole(keys[key], array, view) for key, array in arrays.items()}
    moment = {"state": {0: {"step": 3, "exp_avg": entries["weight"]}}, "param_groups": []}
    value = {"net": entries, "args": namespace(**ARGS), "optimizer": moment, "epoch": 20}
    return value, {keys[key]: array for key, array in arrays.items()}


def check(weights, arrays=ARRAYS):
    assert weights.state_dict.keys() == arrays.keys()
    for key, array in arrays.items():
        assert weights.state_dict[key].dtype == array.dtype, key
        np.testing.assert_array_equal(weights.state_dict[key], array)


def message(path) -> str:
    with pytest.raises(WeightsError) as info:
        files.read(path)
    assert str(path) in str(info.value)
    return str(info.value)


# ---- valid files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["archive/", "model_00020/", "a name with spaces ö/", ""])
def test_zip_with_namespace_and_optimizer(tmp_path, root):
    write_zip(tmp_path / "model.pt", *checkpoint(), root=root)
    weights = files.read(tmp_path / "model.pt")
    check(weights)
    assert weights.metadata == {"args": ARGS, "epoch": 20}
    assert type(weights.metadata["args"]) is dict


def test_legacy_with_namespace_and_optimizer(tmp_path):
    write_legacy(tmp_path / "model.pt", *checkpoint(view=(None,)))
    weights = files.read(str(tmp_path / "model.pt"))
    check(weights)
    assert weights.metadata == {"args": ARGS, "epoch": 20}


def test_big_endian_zip(tmp_path):
    value, storages = checkpoint()
    swapped = {key: array.astype(array.dtype.newbyteorder(">")) for key, array in storages.items()}
    swapped["1"] = storages["1"].view(np.uint16).byteswap()  # bfloat16
    write_zip(tmp_path / "model.pt", value, swapped, byteorder=b"big")
    check(files.read(tmp_path / "model.pt"))


def test_no_byteorder_record_means_little_endian(tmp_path):
    write_zip(tmp_path / "model.pt", *checkpoint(), byteorder=None)
    check(files.read(tmp_path / "model.pt"))


def test_views_of_one_storage(tmp_path):
    base = np.arange(12, dtype=np.float32)
    f32 = np.float32
    value = {
        "transposed": tensor("s", f32, 12, (4, 3), (1, 4)),
        "offset": tensor("s", f32, 12, (2, 2), (4, 1), 5),
        "expanded": tensor("s", f32, 12, (3, 2), (0, 1), 10),
        "scalar": tensor("s", f32, 12, (), (), 11),
        "one": tensor("s", f32, 12, (1, 2), (10**9, 1), 0),
        "untyped": call(
            "torch._utils._rebuild_tensor_v3",
            Raw(
                dump(("storage", name("torch.storage.UntypedStorage"), "u", "cpu", 8)) + PERSISTENT
            ),
            *(1, (2,), (1,), False, call("collections.OrderedDict"), name("torch.uint16")),
        ),
        "parameter": call(
            "torch._utils._rebuild_parameter",
            *(tensor("s", f32, 12, (12,)), True, call("collections.OrderedDict")),
        ),
    }
    untyped = np.array([1, 2, 3, 4], np.uint16)
    write_zip(tmp_path / "model.pt", value, {"s": base, "u": untyped})
    got = files.read(tmp_path / "model.pt").state_dict
    np.testing.assert_array_equal(got["transposed"], base.reshape(3, 4).T)
    np.testing.assert_array_equal(got["offset"], [[5, 6], [9, 10]])
    np.testing.assert_array_equal(got["expanded"], [[10, 11]] * 3)
    np.testing.assert_array_equal(got["one"], [[0, 1]])
    np.testing.assert_array_equal(got["untyped"], [2, 3])
    assert got["scalar"].shape == () and got["scalar"] == 11
    assert np.shares_memory(got["transposed"], got["parameter"])  # read once
    assert not got["parameter"].flags.writeable


def test_legacy_view_of_a_storage(tmp_path):
    """A storage that is itself a slice of another: offsets count from the slice's start."""
    base = np.arange(10, dtype=np.float32)
    value = {"a": tensor("7", np.float32, 10, (2,), (1,), 1, view=(("9", 4, 3),))}
    write_legacy(tmp_path / "model.pt", value, {"7": base})
    np.testing.assert_array_equal(files.read(tmp_path / "model.pt").state_dict["a"], [5, 6])
    value = {"a": tensor("7", np.float32, 10, (3,), (1,), 1, view=(("9", 4, 3),))}
    write_legacy(tmp_path / "model.pt", value, {"7": base})
    assert "exceeds its storage" in message(tmp_path / "model.pt")


@pytest.mark.parametrize("container", ["net", "state_dict", "model", "model_state_dict", None])
def test_containers_and_the_prefix_of_data_parallel(tmp_path, container):
    array = np.ones(3, np.float32)
    entries = {"module.a": whole("0", array), "module.module.b": whole("0", array)}
    value = {container: entries, "epoch": 1} if container else {**entries, "epoch": 1}
    write_zip(tmp_path / "model.pt", value, {"0": array})
    weights = files.read(tmp_path / "model.pt")
    assert list(weights.state_dict) == ["a", "module.b"]
    assert weights.metadata == {"epoch": 1}


def test_a_prefix_that_is_not_uniform_stays(tmp_path):
    array = np.ones(3, np.float32)
    write_zip(
        tmp_path / "m.pt", {"module.a": whole("0", array), "b": whole("0", array)}, {"0": array}
    )
    assert list(files.read(tmp_path / "m.pt").state_dict) == ["module.a", "b"]


def test_numpy_arrays_count_as_tensors(tmp_path):
    array = np.arange(3.0)
    write_zip(tmp_path / "m.pt", {"net": {"a": array, "b": whole("0", array)}}, {"0": array})
    check(files.read(tmp_path / "m.pt"), {"a": array, "b": array})


def test_metadata_leaves_out_large_circular_and_endlessly_shared_values(tmp_path):
    array = np.ones(3, np.float32)
    bomb = Raw(b"]" + b"2\x86" * 60)
    value = {
        "net": {"a": whole("0", array)},
        "bomb": bomb,
        "circle": Raw(b"]q\x00h\x00a"),
        "large": "x" * 200_000,
        "deep": Raw(b"]" * 50 + b"a" * 49),
        "tensors": [whole("0", array)],
        "log": {"loss": [np.float32(0.5), np.arange(3)], (1, "x"): {2}},
    }
    write_zip(tmp_path / "m.pt", value, {"0": array})
    metadata = files.read(tmp_path / "m.pt").metadata
    assert list(metadata) == ["log"]
    assert metadata["log"]["loss"][0] == 0.5 and metadata["log"][1, "x"] == {2}
    np.testing.assert_array_equal(metadata["log"]["loss"][1], [0, 1, 2])


def test_storages_outside_the_state_dict_are_not_read(tmp_path):
    """The optimiser's storages may even be missing, as nothing reads them."""
    array = np.ones(3, np.float32)
    value = {"net": {"a": whole("0", array)}, "optimizer": {"m": whole("1", array)}}
    write_zip(tmp_path / "m.pt", value, {"0": array})
    check(files.read(tmp_path / "m.pt"), {"a": array})


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "model.safetensors"
    arrays = {**ARRAYS, "transposed": np.arange(6.0).reshape(2, 3).T}
    files.write_safetensors(path, arrays, {"source": "test"})
    weights = files.read(path)
    check(weights, arrays)
    assert weights.metadata == {"source": "test"}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_safetensors_whose_length_looks_like_a_pickle(tmp_path):
    """The file starts with the length of its header, here 128 (0x80), like a pickle."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry}).encode().ljust(128)
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 2.0))
    check(files.read(path), {"a": np.array([2.0], np.float32)})


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.safetensors"
    files.write_safetensors(path, {"a": np.ones(2)})
    with pytest.raises(Exception, match="datetime64"):
        files.write_safetensors(path, {"a": np.zeros(2, "datetime64[s]")})
    check(files.read(path), {"a": np.ones(2)})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_recorded_state_dict_survives_a_file(tmp_path, golden):
    """A complete official state dict, with the network's names, shapes and order."""
    arrays = golden("res18").state_dict
    value = {"net": {key: whole(key, array) for key, array in arrays.items()}}
    write_zip(tmp_path / "model.pt", value, arrays)
    check(files.read(tmp_path / "model.pt"), arrays)


# ---- refused files -------------------------------------------------------------------------------


def test_missing_empty_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        files.read(tmp_path / "nowhere.pt")
    assert "directory" in message(tmp_path)
    (tmp_path / "empty.pt").touch()
    assert "empty" in message(tmp_path / "empty.pt")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "neither a PyTorch nor a safetensors"),
        (b"x", "neither"),
        (pickle.dumps({"a": np.ones(2)}, 4), "not one written by torch.save"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(999, 2), "unknown version"),
        (struct.pack("<Q", 2**60) + b"{}", "safetensors"),
        (struct.pack("<Q", 2) + b"{]", "safetensors"),
    ],
)
def test_other_formats(tmp_path, content, part):
    (tmp_path / "model.pt").write_bytes(content)
    assert part in message(tmp_path / "model.pt")


def test_zip_of_another_kind(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    assert "data.pkl" in message(tmp_path / "a.npz")
    write_zip(tmp_path / "b.pt", {"a": whole("0", np.ones(2))}, {}, extra=["constants.pkl"])
    assert "TorchScript" in message(tmp_path / "b.pt")


def test_truncated_anywhere(tmp_path):
    """Truncating any format anywhere is an error that names the file, never a wrong array."""
    write_zip(tmp_path / "zip.pt", *checkpoint())
    write_legacy(tmp_path / "legacy.pt", *checkpoint(view=(None,)))
    files.write_safetensors(tmp_path / "st.safetensors", ARRAYS)
    for path in sorted(tmp_path.iterdir()):
        whole_file = path.read_bytes()
        for size in range(1, len(whole_file) - 1, 37):
            path.write_bytes(whole_file[:size])
            message(path)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    ("entry", "part"),
    {
        "too large": (tensor("0", np.float32, 6, (3, 3)), "exceeds its storage"),
        "offset": (tensor("0", np.float32, 6, (2, 2), offset=3), "exceeds its storage"),
        "huge": (tensor("0", np.float32, 6, (2**40,), (0,)), "whole file"),
        "negative size": (tensor("0", np.float32, 6, (-2, -3)), "(-2, -3)"),
        "negative stride": (tensor("0", np.float32, 6, (2,), (-1,), 1), "(-1,)"),
        "negative offset": (tensor("0", np.float32, 6, (2,), (1,), -1), "-1"),
        "odd offset": (tensor("0", np.float32, 6, (2,), (1,), (1,)), "not integers"),
        "odd size": (tensor("0", np.float32, 6, (2.0,), (1,)), "not integers"),
        "strides": (tensor("0", np.float32, 6, (2,), (1, 1)), "strides"),
        "dimensions": (tensor("0", np.float32, 6, (1,) * 70), "70"),
        "numel": (tensor("0", np.float32, 7, (2,)), "were declared"),
        "no record": (tensor("1", np.float32, 6, (2,)), "1'"),
        "other type": (tensor("0", np.float64, 6, (6,)), ""),
        "not a tensor": ("text", "'a'"),
    }.values(),
)
def test_tensors_that_their_storage_does_not_hold(tmp_path, write, entry, part):
    good = tensor("0", np.float32, 6, (6,))
    value = {"net": {"a": entry, "good": good}}
    write(tmp_path / "model.pt", value, {"0": np.ones(6, np.float32)})
    assert part in message(tmp_path / "model.pt")


def test_legacy_storages_are_checked(tmp_path):
    array = np.ones(3, np.float32)
    write_legacy(tmp_path / "a.pt", {"a": whole("0", array)}, {"0": array, "1": array})
    assert "a storage without a tensor" in message(tmp_path / "a.pt")


def test_safetensors_of_a_type_numpy_lacks(tmp_path):
    entry = {"dtype": "F8_E5M2", "shape": [2], "data_offsets": [0, 2]}
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    assert "unsupported type" in message(path)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_random_damage_gives_a_file_error_or_a_file(tmp_path, write):
    rng = np.random.default_rng(0)
    path = tmp_path / "model.pt"
    write(path, *checkpoint())
    good, refused = np.frombuffer(path.read_bytes(), np.uint8), 0
    for _ in range(300):
        damaged = good.copy()
        damaged[rng.integers(len(good), size=rng.integers(1, 6))] = rng.integers(256)
        path.write_bytes(damaged.tobytes())
        try:
            files.read(path)
        except WeightsError:
            refused += 1
    assert refused > 150


def test_compressed_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)  # a bomb: 10 kB on disk
    assert "compressed" in message(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ([1], "contains a list"),
        ({"weights": {"a": 1}, "epoch": 2}, "'epoch', 'weights'"),
        ({}, "(none)"),
        ({1: whole("0", np.ones(2))}, "key 1"),
        ({10**9999: 1}, "model.pt: "),
    ],
)
def test_no_state_dict(tmp_path, value, part):
    write_zip(tmp_path / "model.pt", value, {"0": np.ones(2)})
    assert part in message(tmp_path / "model.pt")


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_hostile_pickle_is_refused_by_name_and_nothing_runs(tmp_path, write):
    sentinel = tmp_path / "it ran"
    array = np.ones(2, np.float32)
    value = {
        "net": {"a": whole("0", array)},
        "args": call("posix.system", f"touch '{sentinel}'"),
    }
    write(tmp_path / "model.pt", value, {"0": array})
    text = message(tmp_path / "model.pt")
    assert "'posix.system'" in text and "state_dict()" in text
    assert not sentinel.exists()


# ---- small files that demand a lot ---------------------------------------------------------------


def test_many_names_of_one_record(tmp_path):
    """The central directory lists one record under many names, each of which would be read."""
    names, array = [f"k{index:02}" for index in range(40)], np.ones(500, np.float32)
    value = {name: whole(name, array) for name in names}
    write_zip(tmp_path / "whole.pt", value, dict.fromkeys(names, array))
    content = bytearray((tmp_path / "whole.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        first = archive.getinfo("archive/data/k00").header_offset
        start = archive.start_dir
    # All entries point to the first record, and the bytes of the others are removed.
    kept = first + 1 + content[first + 1 :].index(b"PK\x03\x04")
    version = content.rindex(b"PK\x03\x04")
    entries, end = content[start:], content.rindex(b"PK\x05\x06") - start
    at = 0
    while (at := entries.find(b"PK\x01\x02", at)) >= 0:
        if b"archive/data/k" in entries[at + 46 : at + 62]:
            entries[at + 42 : at + 46] = struct.pack("<I", first)
        at += 4
    small = content[:kept] + content[version:start]
    entries[end + 16 : end + 20] = struct.pack("<I", len(small))
    (tmp_path / "small.pt").write_bytes(small + entries)
    assert "overlap" in message(tmp_path / "small.pt")


@pytest.mark.parametrize("byteorder", [b"little", b"big"])
def test_many_tensors_of_one_storage_share_one_array(tmp_path, byteorder):
    array = np.arange(1000, dtype=np.float32)
    stored = array.astype(">f4") if byteorder == b"big" else array
    value = {f"a{i}": tensor("s", np.float32, 1000, (2,), offset=i) for i in range(50)}
    write_zip(tmp_path / "model.pt", value, {"s": stored}, byteorder=byteorder)
    got = files.read(tmp_path / "model.pt").state_dict

    def base(view):
        while isinstance(view.base, np.ndarray):
            view = view.base
        return view.__array_interface__["data"][0]

    assert len({base(view) for view in got.values()}) == 1
    np.testing.assert_array_equal(got["a7"], [7, 8])


def test_all_tensors_together_are_not_much_larger_than_the_file(tmp_path):
    array = np.ones(10_000, np.float32)
    for count, enough in ((8, True), (10, False)):
        value = {f"a{index}": whole("s", array) for index in range(count)}
        write_zip(tmp_path / "model.pt", value, {"s": array})
        if enough:
            assert len(files.read(tmp_path / "model.pt").state_dict) == count
        else:
            assert "8 times" in message(tmp_path / "model.pt")


def test_metadata_is_bounded_in_total(tmp_path, monkeypatch):
    """Many entries that are the same list: each becomes a separate list."""
    monkeypatch.setattr(files, "_ALL_METADATA_LIMIT", 100)
    value = {"net": {"a": whole("0", np.ones(1))}, "x0": Raw(b"(" + b"K\x01" * 29 + b"lq\xc8")}
    value |= {f"x{index}": Raw(b"h\xc8") for index in range(1, 9)}
    write_zip(tmp_path / "model.pt", value, {"0": np.ones(1)})
    assert list(files.read(tmp_path / "model.pt").metadata) == ["x0", "x1", "x2"]


def test_metadata_can_be_printed(tmp_path):
    """No integer has more digits than Python prints, not even in sets or as a key."""
    value = {
        "net": {"a": whole("0", np.ones(1))},
        "huge": 10**5000,
        "large": 10**400,
        "set": {str(i) * 20_000 for i in range(6)},
        "numbers": {i: None for i in range(1001)},
        "few": {i: None for i in range(500)},
    }
    write_zip(tmp_path / "model.pt", value, {"0": np.ones(1)})
    metadata = files.read(tmp_path / "model.pt").metadata
    assert list(metadata) == ["large", "few"]
    repr(metadata)


# ---- damage and nonsense -------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["data.pkl", "data/0"])
def test_a_flipped_bit_is_found_by_the_records_checksum(tmp_path, part):
    path = tmp_path / "model.pt"
    write_zip(path, {"net": {"a": whole("0", np.ones(9))}, "note": "abc"}, {"0": np.ones(9)})
    content = bytearray(path.read_bytes())
    bytes_of = b"abc" if part == "data.pkl" else np.ones(9).tobytes()
    content[content.index(bytes_of) + 2] ^= 1
    path.write_bytes(content)
    assert f"archive/{part}" in message(path) and "CRC-32" in message(path)


def test_a_checksum_of_zero_means_none(tmp_path):
    """As written after `torch.serialization.set_crc32_options(False)`."""
    path = tmp_path / "model.pt"
    write_zip(path, *checkpoint())
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            content = content.replace(struct.pack("<I", info.CRC), bytes(4))
    path.write_bytes(content)
    check(files.read(path))


@pytest.mark.parametrize("word", [b"middle", b"BIG", b"big\n", b""])
def test_an_unknown_byteorder(tmp_path, word):
    write_zip(tmp_path / "model.pt", *checkpoint(), byteorder=None)
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as archive:
        archive.writestr("archive/byteorder", word)
    text = message(tmp_path / "model.pt")
    assert repr(word) in text and "'little'" in text


# ---- errors of the system ------------------------------------------------------------------------


def test_a_system_error_names_the_file(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / ("n" * 300), tmp_path / "file" / "model.pt"):
        for act in (files.read, lambda path: files.write_safetensors(path, {"a": np.ones(1)})):
            with pytest.raises(FileError) as caught:
                act(path)
            assert str(path) in str(caught.value)
    with pytest.raises(MissingFileError):
        files.read(tmp_path / "nowhere.pt")


def test_a_full_disk_names_the_file(tmp_path):
    """A limit on file sizes simulates the full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(FileError, match=r"a\.safetensors cannot be written.*File too large"):
            files.write_safetensors(tmp_path / "a.safetensors", {"a": np.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_written_files_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write_safetensors(tmp_path / "a.safetensors", {"a": np.ones(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_no_control_characters_reach_the_terminal(tmp_path):
    name_of_storage = "\x1b[2J\x07"
    for value in (
        {"\x1b[31mnet": 1},
        {"net": {"\x1b[31ma": whole("0", np.ones(1)), "b": 1}},
        {"\x1b[31ma": tensor(name_of_storage, np.float64, 9, (1,))},
        {"a": call("posix.\x1b[31msystem", "x")},
    ):
        write_zip(tmp_path / "model.pt", value, {"0": np.ones(1)})
        assert message(tmp_path / "model.pt").isprintable()
    header = b'{"\x1b[31m\x9b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 9]}}'
    header = header.replace(b"\x1b", b"\\u001b").replace(b"\x9b", b"\\u009b")
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 9)
    assert message(path).isprintable()
