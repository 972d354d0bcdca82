"""Replaces `python` in shell blocks: sends the command to `command_server.py` and waits."""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["DOCS_SERVER"])
    names = ("DOCS_PARSE_ONLY", "SLURM_PROCID", "SLURM_NTASKS")
    job = {
        "arguments": sys.argv[1:],
        "folder": os.getcwd(),
        "environment": {name: os.environ[name] for name in names if name in os.environ},
    }
    socket.send_fds(server, [json.dumps(job).encode()], [0, 1, 2])
    sys.exit(int(server.recv(16) or b"1"))
