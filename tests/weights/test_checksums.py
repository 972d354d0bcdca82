import json

import pytest

from diffdepth_jax import run_files
from diffdepth_jax.weights import checksums


@pytest.fixture
def directory(tmp_path):
    for name in ("state/d/one", "state/two", "data/three", "top"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 1000)
    checksums.write(tmp_path)
    return tmp_path


def test_unchanged_files_have_no_faults(directory):
    (directory / "state" / "later").touch()
    assert checksums.faults(directory, ["state", "data"]) == []


def test_changed_truncated_and_missing_files_are_named(directory):
    content = bytearray((directory / "state/d/one").read_bytes())
    content[500] ^= 1
    (directory / "state/d/one").write_bytes(content)
    (directory / "state/two").write_bytes(b"")
    (directory / "data/three").unlink()
    found = checksums.faults(directory, ["state", "data"])
    assert [fault.split()[0] for fault in found] == ["data/three", "state/d/one", "state/two"]
    assert "missing" in found[0] and "changed" in found[1] and "0 bytes, not 9000" in found[2]
    assert checksums.faults(directory, ["data"]) == found[:1]
    assert checksums.faults(directory, ["state"], contents=False) == found[2:]


def test_without_a_note_nothing_is_known(tmp_path):
    assert checksums.faults(tmp_path, ["state"]) == []


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "[]", "{}", '{"crc32": []}', '{"crc32": {"a": 1}}', "\udcff"]
)
def test_a_damaged_note_is_a_fault(directory, text):
    (directory / run_files.CHECKSUMS).write_bytes(text.encode(errors="surrogateescape"))
    assert checksums.faults(directory, ["state"]) == ["checksums.json is damaged"]


def test_names_in_a_note_cannot_leave_the_directory(directory):
    note = {"crc32": {"state/\x1b[2J": ["0", 1], "/dev/zero": ["0", 0], "../x": ["0", 0]}}
    (directory / run_files.CHECKSUMS).write_text(json.dumps(note))
    assert checksums.faults(directory, ["state"]) == [r"state/\x1b[2J is missing"]
