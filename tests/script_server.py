"""Runs scripts in processes that start quickly; see `scripts.py`.

It has imported what most scripts import, and computed nothing. For each line of JSON on its
standard input, {"command", "folder", "environment", "output", "errors"}, it forks a process that
does what `python COMMAND` does in this folder and environment, with its output in two files, and
answers with a line that holds the wait status. Variables that Python or JAX reads when it is
imported have no effect.
"""

import gc
import json
import logging
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import diffdepth_jax.adverse.runner
import diffdepth_jax.cli
import diffdepth_jax.evaluation.run.checkpoint
import diffdepth_jax.inference.files
import diffdepth_jax.training.loop  # noqa: F401


def serve() -> dict[str, Any] | None:
    """Serves all requests; returns more than once: a request in each process that is to do it."""
    logging.root.handlers.clear()  # grain adds one if absl, which scripts start first, has not
    gc.freeze()  # So that no process looks for garbage among all that is imported, when it ends.
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return job
        print(os.waitpid(pid, 0)[1], flush=True)
    return None


def become(job: dict[str, Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = job["command"]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__" and (job := serve()):
    become(job)
