"""Runs that are killed, stopped or out of room, as processes of their own."""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_parts

FOLDER = Path(__file__).parent


class Server:
    """Starts training in processes; see training_server.py."""

    def __init__(self, folder):
        self._process = subprocess.Popen(
            [sys.executable, FOLDER / "training_server.py", folder / "compiled"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, experiment, workdir, **job):
        job |= {"experiment": experiment, "workdir": str(workdir)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self):
        """The exit code, or minus the signal, of what was started."""
        return os.waitstatus_to_exitcode(int(self._process.stdout.readline()))

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with contextlib.closing(Server(tmp_path_factory.mktemp("server"))) as server:
        yield server


def batches(workdir):
    """(position, ids) of all batches that were taken, also by processes that died since."""
    path = workdir / "order.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines]


def state_of(workdir, step):
    import orbax.checkpoint as ocp

    directory = workdir / "checkpoints" / str(step)
    with ocp.StandardCheckpointer() as checkpointer:
        state = jax.tree.map(np.asarray, checkpointer.restore(directory / "state"))
    return state, json.loads((directory / "data" / "metadata").read_text())


def assert_equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def rows_of(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in rows]


def unfinished(workdir):
    return [path for path in (workdir / "checkpoints").glob("*") if not path.name.isdecimal()]


def is_at(workdir, batch, saving):
    """Whether so many batches were taken, and, if asked for, a checkpoint is being written."""
    return len(batches(workdir)) > batch and (unfinished(workdir) or not saving)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_one_that_was_left_alone(server, tmp_path):
    experiment = tiny_parts.EXPERIMENT | {
        "num_steps": 400,
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

    assert state_of(whole, 400)[0]["batch_stats"] and state_of(whole, 400)[0]["ema_params"]
    assert_equal(state_of(whole, 400), state_of(parts, 400))
    order = dict(batches(whole))
    assert sorted(order) == list(range(1, 401)) and set(batches(parts)) == set(order.items())
    assert len(batches(parts)) > 400
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
