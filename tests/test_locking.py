import errno
import os
import signal
import subprocess
import sys

import pytest

from diffdepth_jax import locking
from diffdepth_jax.errors import FileError

HOLDER = """
import sys
from diffdepth_jax import locking
with locking.hold(sys.argv[1], "training"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_second_process_learns_who_holds_the_directory(holder, tmp_path):
    with pytest.raises(FileError) as caught, locking.hold(tmp_path, "training"):
        pytest.fail("two processes hold the same lock")
    message = str(caught.value)
    for fact in (str(tmp_path), "training", f"process {holder.pid} on ", "since 2", "python"):
        assert fact in message
    assert "\n" not in message


def test_another_purpose_or_directory_is_free(holder, tmp_path):
    (tmp_path / "other").mkdir()
    with locking.hold(tmp_path, "evaluation"), locking.hold(tmp_path / "other", "training"):
        for lock in (".training.lock", ".evaluation.lock", "other/.training.lock"):
            assert (tmp_path / lock).exists()


def test_a_killed_process_no_longer_holds_the_lock(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".training.lock").exists()
    with locking.hold(tmp_path, "training"):
        text = (tmp_path / ".training.lock").read_text()
        assert f"process {os.getpid()} " in text and f"process {holder.pid} " not in text
    assert not list(tmp_path.iterdir())


def test_one_process_cannot_hold_it_twice_but_can_again_later(tmp_path):
    for _ in range(2):
        with locking.hold(tmp_path, "training"):
            with pytest.raises(FileError, match=f"process {os.getpid()} "):
                locking.hold(tmp_path, "training").__enter__()
            assert (tmp_path / ".training.lock").exists()
        assert not list(tmp_path.iterdir())


def test_a_file_that_its_holder_has_just_removed_locks_nothing(tmp_path, monkeypatch):
    """The file is opened before its holder finishes, and locked afterwards."""
    opened, original = [], locking.fcntl.flock

    def late(descriptor, operation):
        if not opened:
            (tmp_path / ".training.lock").unlink()
        opened.append(descriptor)
        original(descriptor, operation)

    monkeypatch.setattr(locking.fcntl, "flock", late)
    with locking.hold(tmp_path, "training"):
        assert len(opened) == 2
        with pytest.raises(FileError):
            locking.hold(tmp_path, "training").__enter__()


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileError, match=r"nowhere.*cannot be written"):
        locking.hold(tmp_path / "nowhere", "training").__enter__()


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", unsupported)
    with caplog.at_level("WARNING"), locking.hold(tmp_path, "training"):
        pass
    monkeypatch.setattr(locking, "fcntl", None)
    with caplog.at_level("WARNING"), locking.hold(tmp_path, "training"):
        pass
    assert len(caplog.records) == 2 and str(tmp_path) in caplog.text
    assert not list(tmp_path.iterdir())
