"""Speaks the protocol of `diffdepth_jax/adverse/worker.py` without PyTorch.

Its image is the clean one with a tint drawn from the seed. The environment variable STANDIN sets
its behaviour, in JSON:

    delay         seconds per image
    log           a file that gets a line `key` for each image made
    die_at        keys at which it kills itself with SIGKILL, every time
    die_once_at   likewise, but only until the file named by `once` exists
    hang_at, rubbish_at, fail_at, full_disk_at, flag_at   keys, likewise
    hung          a file that it makes when it hangs
    alive         a named pipe that it holds open as long as it lives
    opening       "die", "hang", "rubbish", "refuse", "old": what it does instead of the handshake
    devices       how many GPUs it claims to have
    faults        {key: fault} that a check reports
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

PROTOCOL = 1


def main() -> None:
    behaviour = json.loads(os.environ.get("STANDIN", "{}"))
    if "alive" in behaviour:
        os.open(behaviour["alive"], os.O_WRONLY)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("printed by a library")  # which must not end up among the replies

    def send(**reply) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    for request in _requests():
        if "fetch" in request:
            send(fetched=behaviour["fetched"])
        elif "open" in request:
            _open(behaviour, request, send)
        elif "check" in request:
            asked = {each["key"] for each in request["check"]}
            faults = behaviour.get("faults", {})
            send(checked={key: fault for key, fault in faults.items() if key in asked})
        elif "batch" in request:
            for item in request["batch"]:
                _make(behaviour, item, send)


def _requests():
    """As in the real worker, end of input ends the process at once."""
    lines: list[dict] = []
    ready = threading.Condition()

    def read() -> None:
        for line in sys.stdin.buffer:
            with ready:
                lines.append(json.loads(line))
                ready.notify()
            if "close" in lines[-1]:
                return
        os._exit(3)

    threading.Thread(target=read, daemon=True).start()
    while True:
        with ready:
            ready.wait_for(lambda: lines)
            request = lines.pop(0)
        if "close" in request:
            return
        yield request


def _open(behaviour: dict, request: dict, send) -> None:
    match behaviour.get("opening"):
        case "die":
            print("no module named torch", file=sys.stderr, flush=True)
            os._exit(1)
        case "hang":
            _hang(behaviour)
        case "rubbish":
            send_rubbish(send)
        case "refuse":
            send(protocol=PROTOCOL, error="the weights do not fit", kind="weights")
            return
    old = behaviour.get("opening") == "old"
    send(
        protocol=0 if old else request["protocol"],
        versions={"standin": "1"},
        device="cuda" if "devices" in behaviour else "cpu",
        devices=behaviour.get("devices", 1),
        dtype="float32",
        threads=request["open"]["threads"],
    )


def _make(behaviour: dict, item: dict, send) -> None:
    key = item["key"]
    time.sleep(behaviour.get("delay", 0))
    send(progress=True)
    if key in behaviour.get("die_at", ()):
        os.kill(os.getpid(), signal.SIGKILL)
    if key in behaviour.get("die_once_at", ()):
        try:
            Path(behaviour["once"]).touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    if key in behaviour.get("hang_at", ()):
        _hang(behaviour)
    if key in behaviour.get("rubbish_at", ()):
        send_rubbish(send)
        time.sleep(1000)
    if key in behaviour.get("fail_at", ()):
        send(key=key, error="the clean image cannot be read")
        return
    if key in behaviour.get("full_disk_at", ()):
        send(key=key, error=f"{item['output']} cannot be written: No space left", fatal=True)
        return
    import numpy as np  # here, so that a process starts at once
    from PIL import Image

    rng = np.random.default_rng(item["seed"])
    tint = rng.uniform(0.2, 1, 3)
    if item["image"] is None:
        image = rng.integers(0, 256, (*item["size"], 3))
    else:
        image = np.asarray(Image.open(item["image"]).convert("RGB"))
    flagged = key in behaviour.get("flag_at", ())
    Image.fromarray((image * (tint * (not flagged))).astype(np.uint8)).save(
        item["temporary"], format="PNG"
    )
    os.replace(item["temporary"], item["output"])
    if "log" in behaviour:
        with open(behaviour["log"], "a") as file:
            file.write(key + "\n")
    send(key=key, ok=True, **({"flagged": True} if flagged else {}))


def _hang(behaviour: dict) -> None:
    Path(behaviour["hung"]).touch()
    time.sleep(1000)


def send_rubbish(send) -> None:
    # The protocol's stream, which `send` writes to.
    stream = send.__closure__[0].cell_contents
    stream.write("Downloading: 100%\n")
    stream.flush()


if __name__ == "__main__":
    main()
