"""Runs scripts in processes that start quickly; see `scripts.py`.

It imports what most scripts import, but computes nothing. For each line of JSON on standard input,
{"command", "folder", "environment", "output", "errors"}, it forks a process that acts like
`python COMMAND` in that folder and environment, with its output in two files, and prints a line
with the wait status. Variables that Python or JAX reads on import have no effect.
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
    """Serves all requests. In the process forked for a request it returns that request."""
    logging.root.handlers.clear()  # grain adds one unless absl, which scripts start first, has
    gc.freeze()  # So that exiting processes do not search all imports for garbage.
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
