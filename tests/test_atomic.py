"""Tests of files that are whole or absent."""

import os

import pytest

from diffdepth_jax import atomic


def test_a_file_appears_under_its_name_only_when_whole(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("before")

    def write(file):
        file.write(b"af")
        file.flush()
        assert path.read_text() == "before"
        assert [part.suffix for part in tmp_path.iterdir() if part != path] == [".part"]
        file.write(b"ter")

    atomic.write(path, write)
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("before")

    def write(file):
        file.write(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        atomic.write(path, write)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="no space"):
        atomic.write(tmp_path / "new.txt", write)
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf8_and_others_may_read_it(tmp_path):
    previous = os.umask(0o022)
    try:
        atomic.write_text(tmp_path / "note.txt", "Tübingen\r\n")
    finally:
        os.umask(previous)
    assert (tmp_path / "note.txt").read_bytes() == "Tübingen\r\n".encode()
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o644
