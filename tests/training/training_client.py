"""Asks training_server.py to train, and reads the files of runs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from tensorboardX.proto.event_pb2 import Event


class Server:
    """Starts training in other processes; see training_server.py."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("training_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, experiment, workdir, **job):
        """`job`: other keys of the request, see training_server.py."""
        job |= {"experiment": experiment, "workdir": str(workdir)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def wait(self):
        """The exit code, or minus the signal, of the process; a list if there are several."""
        statuses = self._process.stdout.readline().split()
        codes = [os.waitstatus_to_exitcode(int(status)) for status in statuses]
        return codes if len(codes) > 1 else codes[0]

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def errors_of(workdir):
    """The lines of standard error, without the progress bar."""
    lines = (workdir / "errors.txt").read_text().replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip() and " steps/s" not in line]


def batches(workdir):
    """(position, ids) of all batches that were read, including those of processes that died."""
    path = workdir / "order.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines]


def state_of(workdir, step):
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


def events_of(path):
    """Reads an event file: records of a length (uint64), its checksum, payload, its checksum."""
    content = path.read_bytes()
    while content:
        length = int.from_bytes(content[:8], "little")
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
