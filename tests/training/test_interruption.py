"""Runs in separate processes that are killed, stopped or out of disk space."""

import random
import signal

import pytest
import tiny_parts
from training_client import assert_equal, batches, errors_of, rows_of, state_of

# While a checkpoint is being written, and while an older one is being removed.
SAVING = (
    "os.mkdir */state.*",
    "os.rename */config",
    "os.rename */data",
    "os.rename */state",
    "os.rename */checkpoints/[0-9]*",
)
REMOVING = "shutil.rmtree */checkpoints/[0-9]*"


def unfinished(workdir):
    return [path for path in (workdir / "checkpoints").glob("*") if not path.name.isdecimal()]


def train(server, experiment, workdir, **job):
    server.start(experiment, workdir, **job)
    return server.wait()


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_like_an_uninterrupted_one(server, tmp_path):
    experiment = tiny_parts.EXPERIMENT | {
        "num_steps": 80,
        "ema_decay": 0.9,
        "checkpoint": {"every_steps": 8},
        "logging": {"every_steps": 7},
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(server, experiment, whole) == 0

    generator = random.Random(0)
    places = [*SAVING, REMOVING, *[None] * 4]  # The last ones are killed between two steps.
    generator.shuffle(places)
    for number, place in enumerate(places):
        kill = {"batch": 1 + 7 * number + generator.randrange(7)}
        kill |= {"at": place} if place else {}
        assert train(server, experiment, parts, kill=kill) == -signal.SIGKILL
        assert unfinished(parts) or place not in SAVING
    assert train(server, experiment, parts) == 0

    assert state_of(whole, 80)[0]["batch_stats"] and state_of(whole, 80)[0]["ema_params"]
    assert_equal(state_of(whole, 80), state_of(parts, 80))
    order = dict(batches(whole))
    assert sorted(order) == list(range(1, 81)) and set(batches(parts)) == set(order.items())
    assert len(batches(parts)) > 80
    assert rows_of(parts) == rows_of(whole)
    assert not unfinished(parts)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_how_to_resume_and_exits(server, tmp_path, number):
    experiment = tiny_parts.EXPERIMENT | {
        "num_steps": 60,
        "checkpoint": {"every_steps": 1000},
        "logging": {"every_steps": 7},
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(server, experiment, whole) == 0
    notice = {"batch": 4, "number": number}
    assert train(server, experiment, parts, signal=notice) == 128 + number
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["4"]
    assert len(batches(parts)) == 4
    text = f"{number.name}: step 4 is saved in {parts}; run the same command to resume"
    assert errors_of(parts) == [text]
    assert train(server, experiment, parts) == 0
    assert_equal(state_of(whole, 60), state_of(parts, 60))
    assert rows_of(parts) == rows_of(whole)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint_and_a_one_line_error(server, tmp_path):
    """A limit on file sizes simulates the full disk: writing fails in the same place."""
    experiment = tiny_parts.EXPERIMENT | {
        "num_steps": 50,
        "model": {"name": "tiny", "features": 2000},
        "checkpoint": {"every_steps": 10, "keep": 5},
    }
    limit = {"batch": 25, "bytes": 100_000}
    assert train(server, experiment, tmp_path, limit=limit) == 2
    directory = tmp_path / "checkpoints"
    good = max(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
    assert 10 <= good < 50 and unfinished(tmp_path)
    (message,) = errors_of(tmp_path)
    assert str(directory) in message and "File too large" in message
    assert message.endswith(f"last good checkpoint in {directory}: step {good}")

    before = len(batches(tmp_path))
    assert train(server, experiment, tmp_path) == 0
    assert batches(tmp_path)[before][0] == good + 1
    assert sorted(path.name for path in directory.iterdir()) == ["10", "20", "30", "40", "50"]
