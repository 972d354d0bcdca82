"""Runs the project's scripts as processes, without waiting for their imports each time."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
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
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in ("output", "errors")}
        job = {name: str(path) for name, path in files.items()}
        job |= {"command": command, "folder": str(PROJECT)}
        job |= {"environment": dict(os.environ) | environment}
        server = _server()
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        status = os.waitstatus_to_exitcode(int(server.stdout.readline()))
        output, errors = (path.read_text() for path in files.values())
    return subprocess.CompletedProcess(command, status, output, errors)


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("script_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    atexit.register(server.communicate)
    return server
