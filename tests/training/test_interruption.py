"""Runs that are killed, stopped or out of room, as processes of their own."""

import os
import random
import signal
import time
from functools import partial

import pytest
import tiny_parts
from training_client import assert_equal, batches, rows_of, state_of


def unfinished(workdir):
    return [path for path in (workdir / "checkpoints").glob("*") if not path.name.isdecimal()]


def is_at(workdir, batch, saving):
    """Whether so many batches were taken, and, if asked for, a checkpoint is being written."""
    return len(batches(workdir)) > batch and (unfinished(workdir) or not saving)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "a run made no progress"
        time.sleep(0.001)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_one_that_was_left_alone(server, tmp_path):
    experiment = tiny_parts.EXPERIMENT | {
        "num_steps": 160,
        "ema_decay": 0.9,
        "checkpoint": {"every_steps": 8},
        "logging": {"every_steps": 7},
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    server.start(experiment, whole)
    assert server.wait() == 0

    generator = random.Random(0)
    caught_saving = 0
    for _ in range(20):
        before = len(batches(parts))
        pid = server.start(experiment, parts)
        wanted = before + generator.randrange(25)
        saving = generator.random() < 0.5
        wait_for(partial(is_at, parts, wanted, saving))
        time.sleep(0.01 * generator.random())
        os.kill(pid, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        caught_saving += bool(unfinished(parts))
    assert caught_saving >= 3
    server.start(experiment, parts)
    assert server.wait() == 0

    assert state_of(whole, 160)[0]["batch_stats"] and state_of(whole, 160)[0]["ema_params"]
    assert_equal(state_of(whole, 160), state_of(parts, 160))
    order = dict(batches(whole))
    assert sorted(order) == list(range(1, 161)) and set(batches(parts)) == set(order.items())
    assert len(batches(parts)) > 160
    assert rows_of(parts) == rows_of(whole)
    assert not unfinished(parts)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_where_to_go_on_and_exits(server, tmp_path, number):
    experiment = tiny_parts.EXPERIMENT | {
        "num_steps": 60,
        "checkpoint": {"every_steps": 1000},
        "logging": {"every_steps": 7},
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    server.start(experiment, whole)
    assert server.wait() == 0
    pid = server.start(experiment, parts)
    wait_for(partial(is_at, parts, 3, saving=False))
    os.kill(pid, number)
    assert server.wait() == 128 + number
    (step,) = [int(path.name) for path in (parts / "checkpoints").iterdir()]
    assert step == len(batches(parts)) < 60
    told = f"{number.name}: step {step} is saved in {parts}; the same command goes on from there"
    assert told in (parts / "errors.txt").read_text()
    server.start(experiment, parts)
    assert server.wait() == 0
    assert_equal(state_of(whole, 60), state_of(parts, 60))
    assert rows_of(parts) == rows_of(whole)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint_and_is_told(server, tmp_path):
    """A limit of the size of files stands for the full disk: writing fails in the same place."""
    experiment = tiny_parts.EXPERIMENT | {
        "num_steps": 50,
        "model": {"name": "tiny", "features": 2000},
        "checkpoint": {"every_steps": 10, "keep": 5},
    }
    server.start(experiment, tmp_path, limit={"batch": 25, "bytes": 100_000})
    assert server.wait() == 1
    directory = tmp_path / "checkpoints"
    good = max(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
    assert 10 <= good < 50 and unfinished(tmp_path)
    message = (tmp_path / "errors.txt").read_text().splitlines()[-1]
    assert f"no checkpoint could be written to {directory}: " in message
    assert "File too large" in message
    assert message.endswith(f"last good checkpoint in {directory}: step {good}")

    before = len(batches(tmp_path))
    server.start(experiment, tmp_path)
    assert server.wait() == 0
    assert batches(tmp_path)[before][0] == good + 1
    assert sorted(path.name for path in directory.iterdir()) == ["10", "20", "30", "40", "50"]
