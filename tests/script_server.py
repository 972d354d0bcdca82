"""Runs scripts in processes that start quickly; see `scripts.py`.

Started as `python -m tests.script_server SOCKET [MODULE]`. It imports what most scripts import, but
computes nothing. For each connection it forks a process that acts like `python COMMAND`, with the
given folder, environment and standard streams, and replies with the exit status. Variables that
Python or JAX reads on import have no effect.

Every forked process first calls `prepare()` of MODULE, if one is given.
"""

import gc
import importlib
import json
import logging
import os
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

import diffdepth_jax.adverse.runner
import diffdepth_jax.cli
import diffdepth_jax.evaluation.run.checkpoint
import diffdepth_jax.inference.files
import diffdepth_jax.training.loop  # noqa: F401


def serve(path: str) -> dict[str, Any]:
    """Serves until it is killed. In the process forked for a job, returns that job."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                message, descriptors, *_ = socket.recv_fds(connection, 1 << 20, 3)
                pid = os.fork()
                if pid == 0:
                    for number, descriptor in enumerate(descriptors):
                        os.dup2(descriptor, number)
                        os.close(descriptor)
                    return json.loads(message)
                for descriptor in descriptors:
                    os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def run(command: list[str], folder: str, environment: dict[str, str]) -> None:
    """What `python COMMAND` does."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        exec(command[1], {"__name__": "__main__"})
    else:
        sys.path[0] = str(Path(command[0]).resolve().parent)
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    module = importlib.import_module(sys.argv[2]) if len(sys.argv) > 2 else None
    logging.root.handlers.clear()  # grain adds one unless absl, which scripts start first, has
    gc.freeze()  # So that exiting processes do not search all imports for garbage.
    job = serve(sys.argv[1])
    if module is not None:
        os.environ.update(job["environment"])
        module.prepare()
    run(**job)
