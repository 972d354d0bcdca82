"""Runs the project's scripts as processes, without waiting for their imports each time."""

import atexit
import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run([sys.executable, script, *arguments])`, in the project's folder.

    Args:
        script: path within the project.
        arguments: command-line arguments.
        environment: variables to add to those of this process.
    """
    command = [script, *map(str, arguments)]
    with (
        open(os.devnull) as nothing,
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
    ):
        streams = [file.fileno() for file in (nothing, output, errors)]
        status = send(_server(), command, str(PROJECT), dict(os.environ) | environment, streams)
        output.seek(0), errors.seek(0)
        return subprocess.CompletedProcess(command, status, output.read(), errors.read())


def send(
    server: str, command: list[str], folder: str, environment: dict[str, str], streams: list[int]
) -> int:
    """Runs `python COMMAND` by a server of `script_server.py`; returns the exit status.

    Args:
        server: path of its socket.
        command: arguments of `python`.
        folder: working directory.
        environment: all variables.
        streams: descriptors of standard input, output and errors.
    """
    job = {"command": command, "folder": folder, "environment": environment}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server)
        socket.send_fds(connection, [json.dumps(job).encode()], streams)
        return int(connection.recv(16) or b"1")


@contextlib.contextmanager
def serving(*module: str) -> Iterator[str]:
    """A running `script_server.py`, as the path of its socket.

    Args:
        module: name of a module with `prepare()`, at most one.
    """
    with tempfile.TemporaryDirectory() as folder:  # A socket's path has to be short.
        path = f"{folder}/socket"
        command = [sys.executable, "-m", "tests.script_server", path, *module]
        with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n", "the server has not started"
            try:
                yield path
            finally:
                process.kill()


@functools.cache
def _server() -> str:
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(serving())
