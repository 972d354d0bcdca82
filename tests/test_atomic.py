"""Files are complete or absent."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import atomic
from diffdepth_jax.errors import FileError, MissingFileError


def test_a_file_appears_under_its_name_only_when_complete(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("before")

    def write(file):
        file.write(b"af")
        file.flush()
        assert path.read_text() == "before"
        (part,) = (part for part in tmp_path.iterdir() if part != path)
        assert part.suffix == ".part" and part.name.startswith(".")
        assert atomic.remove_leftovers(tmp_path) == []
        file.write(b"ter")

    atomic.write(path, write)
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [OSError, RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, kind):
    path = tmp_path / "result.txt"
    path.write_text("before")

    def write(file):
        file.write(b"half")
        raise kind("the cause")

    with pytest.raises(kind, match="the cause"):
        atomic.write(path, write)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(kind, match="the cause"):
        atomic.write(tmp_path / "new.txt", write)
    assert list(tmp_path.iterdir()) == [path]


WRITERS = {
    "text": lambda file: file.write(b"a" * 10),
    "array": lambda file: np.save(file, np.zeros((64, 64))),
    "picture": lambda file: Image.new("RGB", (64, 64)).save(file, "PNG"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_names_file_and_cause(tmp_path, kind):
    path = tmp_path / "depth.out"
    atomic.temporary_path(path).symlink_to("/dev/full")
    with pytest.raises(FileError, match=r"depth\.out.*No space left on device"):
        atomic.write(path, WRITERS[kind])
    assert list(tmp_path.iterdir()) == []


def test_files_written_by_libraries_are_unchanged(tmp_path):
    array = np.arange(12.0).reshape(3, 4)
    atomic.write(tmp_path / "a.npy", lambda file: np.save(file, array))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)
    picture = Image.fromarray(array.astype(np.uint8))
    atomic.write(tmp_path / "a.png", lambda file: picture.save(file, "PNG"))
    with Image.open(tmp_path / "a.png") as read:
        np.testing.assert_array_equal(np.asarray(read), array)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"note\.txt.*no folder .*nowhere"):
        atomic.write_text(tmp_path / "nowhere" / "note.txt", "a")
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"note\.txt.*no folder .*file"):
        atomic.write_text(tmp_path / "file" / "note.txt", "a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match=r"folder.*Is a directory"):
        atomic.write_text(tmp_path / "folder", "a")


@pytest.mark.parametrize("letter", ["a", "ü"])
def test_a_name_as_long_as_the_system_allows(tmp_path, letter):
    length = 255 // len(letter.encode())
    paths = [tmp_path / f"{letter * (length - 1)}{last}" for last in "bc"]
    assert atomic.temporary_path(paths[0]) != atomic.temporary_path(paths[1])
    for path in paths:
        atomic.write_text(path, path.name)
        assert path.read_text() == path.name
    with pytest.raises(FileError, match="File name too long"):
        atomic.write_text(tmp_path / (letter * 256), "a")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_text_is_utf8_and_others_may_read_it(tmp_path, umask, mode):
    previous = os.umask(umask)
    try:
        atomic.write_text(tmp_path / "note.txt", "Tübingen \udcff\r\n")
    finally:
        os.umask(previous)
    assert (tmp_path / "note.txt").read_bytes() == "Tübingen \\udcff\r\n".encode()
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == mode


PROJECT = Path(__file__).resolve().parents[1]
KILLED = """
import os, signal, sys
from diffdepth_jax import atomic
def write(file):
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
atomic.write(sys.argv[1], write)
"""


def test_only_leftovers_of_killed_processes_are_removed(tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    for folder in (tmp_path, below):
        command = [sys.executable, "-c", KILLED, folder / ("a" * 250)]
        subprocess.run(command, cwd=PROJECT, check=False)
    (left,), (left_below,) = tmp_path.glob(".*.part"), below.glob(".*.part")
    ours = atomic.temporary_path(tmp_path / "ours")
    gone = left.name.rpartition("-")[2]
    another = tmp_path / f".b.00000000-{gone}"
    for path in (ours, another, tmp_path / ".c.part", tmp_path / f"d.{gone}"):
        path.touch()
    assert atomic.remove_leftovers(tmp_path) == [left]
    assert atomic.remove_leftovers(tmp_path, recursive=True) == [left_below]
    assert len(list(tmp_path.iterdir())) == 5
    assert atomic.remove_leftovers(tmp_path / "nowhere") == []


def test_a_directory_takes_the_place_of_another_only_when_complete(tmp_path):
    path = tmp_path / "frames"
    for name in "01":
        with atomic.replacing_directory(path, str.isdecimal) as temporary:
            (temporary / name).touch()
            assert temporary.name.endswith(".part")
    assert [each.name for each in path.iterdir()] == ["1"]
    with (
        pytest.raises(KeyboardInterrupt),
        atomic.replacing_directory(path, str.isdecimal) as temporary,
    ):
        (temporary / "2").touch()
        raise KeyboardInterrupt
    assert [each.name for each in path.iterdir()] == ["1"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_with_other_files_is_not_replaced(tmp_path):
    path = tmp_path / "frames"
    path.mkdir()
    for name in ("0", "notes"):
        (path / name).touch()
    with (
        pytest.raises(FileError, match=r"frames holds notes, .*choose another output"),
        atomic.replacing_directory(path, str.isdecimal),
    ):
        raise AssertionError("the block runs")
    assert len(list(path.iterdir())) == 2
    with (
        pytest.raises(MissingFileError, match="no folder"),
        atomic.replacing_directory(path / "absent" / "frames", str.isdecimal),
    ):
        raise AssertionError("the block runs")
    file = tmp_path / "file"
    file.write_text("before")
    with (
        pytest.raises(FileError, match="file cannot be written"),
        atomic.replacing_directory(file, str.isdecimal),
    ):
        raise AssertionError("the block runs")
    assert file.read_text() == "before"
