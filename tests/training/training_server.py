"""Trains in processes that start quickly and can be killed.

For each line of JSON on standard input, {"experiment", "workdir", ...}, forks a process from one
that has imported everything but computed nothing. When that ends, prints its wait status, or
several separated by spaces. Faults are part of the request, so that they do not depend on timing:

    "devices": 8                      number of simulated devices per process
    "processes": 2                    processes that train together; faults hit the last one
    "evaluated": true                 also evaluates the trained model
    "divided": 1                      shards arrays with at least this many elements
    "limit": {"batch": 25, "bytes": 9}   from this batch on, files cannot grow beyond this size
    "signal": {"batch": 4, "number": 15}   sends a signal when this batch is read
    "kill": {"batch": 20, "at": PATTERN}   kills the process when this batch is read or, with a
        pattern, just before the first matching event after that, such as "os.rename TARGET"

Standard error ends in one line for a UserError, as in a script, and in a traceback otherwise.
WORKDIR/order.txt gets a line for every batch, WORKDIR/errors.txt the standard error, and
WORKDIR/bytes.txt the size of the state on the first device. For the second process these files are
called order1.txt and so on.
"""

import fnmatch
import json
import os
import resource
import signal
import socket
import sys
import traceback
import warnings
from pathlib import Path

import jax
import tiny_parts

from diffdepth_jax import registry
from diffdepth_jax.data import pipeline
from diffdepth_jax.errors import UserError
from diffdepth_jax.training import distributed, experiment, loop, sharding
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.interruption import Interrupted


def train(job, index, port):
    workdir, count = Path(job["workdir"]), job.get("processes", 1)
    workdir.mkdir(parents=True, exist_ok=True)
    suffix = f"{index or ''}.txt"
    os.dup2(os.open(workdir / f"errors{suffix}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    os.dup2(2, 1)  # Gloo prints there when it has connected the processes.
    order = os.open(workdir / f"order{suffix}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    never = {"batch": None}
    befalling = job if index == count - 1 else {}
    limit, notice, kill = (befalling.get(name, never) for name in ("limit", "signal", "kill"))
    take = pipeline.TrainIterator.__next__

    def noting(self):
        batch = take(self)
        os.write(order, f"{self._position} {' '.join(batch['id'])}\n".encode())
        if self._position == limit["batch"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit["bytes"], limit["bytes"]))
        if self._position == notice["batch"]:
            os.kill(os.getpid(), notice["number"])
        if self._position == kill["batch"]:
            sys.addaudithook(die) if "at" in kill else die()
        return batch

    def die(event=None, arguments=()):
        # For a rename, the target is followed by two numbers; other events have one path.
        path = arguments[1 if event == "os.rename" else 0] if arguments else ""
        if event is None or fnmatch.fnmatchcase(f"{event} {path}", kill["at"]):
            os.kill(os.getpid(), signal.SIGKILL)

    save = Checkpointer.save

    def measuring(self, step, state, *arguments):
        parts = [array.addressable_shards[0].data for array in jax.tree.leaves(state)]
        (workdir / f"bytes{suffix}").write_text(str(sum(part.nbytes for part in parts)))
        save(self, step, state, *arguments)

    pipeline.TrainIterator.__next__ = noting
    Checkpointer.save = measuring
    flags = ["--xla_force_host_platform_device_count=" + str(job.get("devices", 2))]
    flags += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    os.environ["XLA_FLAGS"] = " ".join(flags)  # Compiling takes most of the time here.
    sharding._DIVIDED = job.get("divided", sharding._DIVIDED)
    try:
        if count > 1:
            distributed.start(f"localhost:{port}", count, index)
        if job.get("evaluated"):
            loop.train_and_evaluate(job["experiment"], workdir)
        else:
            loop.train(experiment.from_mapping(job["experiment"]), workdir)
        if count > 1:
            jax.distributed.shutdown()
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return interrupted.exit_code
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def main():
    # A process that finds a cache entry which another is still writing compiles instead.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
    tiny_parts.register()
    registry.module("network", "diffusion_depth")
    registry.module("objective", "self_diffusion")
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        pids = [fork(job, index, port) for index in range(job.get("processes", 1))]
        print(*wait(pids), flush=True)


def wait(pids):
    """The wait statuses; if a process is killed, so are the others, as a launcher would do."""
    found = {}
    while len(found) < len(pids):
        pid, found[pid] = os.wait()
        if os.WIFSIGNALED(found[pid]):
            for other in set(pids) - set(found):
                os.kill(other, signal.SIGKILL)
    return [found[pid] for pid in pids]


def fork(job, index, port):
    """Starts process `index` of a job."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = train(job, index, port)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


if __name__ == "__main__":
    main()
