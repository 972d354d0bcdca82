"""Trains in processes that are quick to start and may be killed.

Reads lines of JSON, {"experiment", "workdir", ...}, and forks a process for each, from one that has
imported everything and computed nothing. Answers each with a line, the wait status, when it has
ended; of several together, the statuses with blanks between. What befalls a process is said
beforehand, so that it does not depend on anybody's speed:

    "devices": 8                      of so many simulated devices each
    "processes": 2                    that train together; what follows befalls the last of them
    "evaluated": true                 the trained model is evaluated too
    "divided": 1                      arrays are divided from so many elements on
    "limit": {"batch": 25, "bytes": 9}   files cannot grow beyond so many bytes from a batch on
    "signal": {"batch": 4, "number": 15}   gets a signal when a batch is taken
    "kill": {"batch": 20, "at": PATTERN}   is killed as soon as a batch is taken, or, with a
        pattern, when the first thing of that kind is about to happen from then on: an event such
        as "os.rename TARGET"

Standard error ends in one line for a UserError, as of a script, and in a traceback otherwise.
WORKDIR/order.txt gets a line for every batch, WORKDIR/errors.txt the standard error, and
WORKDIR/bytes.txt the size of the saved states' part on the first device. Of the processes after the
first, these files are called order1.txt and so on.
"""

import fnmatch
import json
import os
import resource
import signal
import socket
import sys
import traceback
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
    os.dup2(2, 1)  # Gloo says there when it has connected processes.
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
        # A rename's target comes last but for two numbers; other events have one path.
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
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
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
    """The wait statuses; where a process is killed the others are too, as a launcher does it."""
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
