"""Runs the commands of the documentation's shell blocks, quickly and at a small size.

Started as `python command_server.py SOCKET`. It imports what the scripts import but computes
nothing. For each connection (from `command_client.py`, which replaces `python` in the blocks) it
forks a process, which runs the script with the client's arguments, folder, environment and standard
streams, and returns the exit status.

Configs are shrunk: a network of `tests/models/networks/small_configs.py` instead of the real one,
two steps, small crops. Command-line overrides are applied after that. With DOCS_PARSE_ONLY in the
environment, a script only parses its flags and checks every field of its config.
"""

import argparse
import functools
import gc
import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

import diffdepth_jax.adverse.config
import diffdepth_jax.adverse.runner
import diffdepth_jax.evaluation.run.checkpoint
import diffdepth_jax.inference.files
import diffdepth_jax.training.loop
from diffdepth_jax import cli, registry, visualize
from tests.models.networks.small_configs import SMALL

PROJECT = Path(__file__).resolve().parents[2]


def smaller(config: ConfigDict) -> ConfigDict:
    """The same experiment, small enough to take seconds."""
    if "model" in config:
        given = config.model.get("max_depth", None)
        config.model = SMALL[config.model.name] | {"name": config.model.name, "max_depth": given}
        config.num_steps, config.batch_size = 2, 2
        config.logging.every_steps = 1
        train = config.data.train
        train.num_workers, train.cache = 0, False
        train.augmentation.crop = (42, 56) if config.model.name == "depth_anything" else (64, 64)
        config.data.evaluation_limit = config.data.baseline_frames = 2
        for source in (train.source, config.data.evaluation):
            if str(source.get("split", "")).startswith("eigen_"):  # a published list of frames
                source.split = {"eigen_train": "train", "eigen_test": "val"}[source.split]
    elif "limit" in config:
        config.limit = 2
    return config


def run(arguments: list[str]) -> None:
    """What `python ARGUMENTS` does."""
    parse = cli._ConfigFileParser.parse
    cli._ConfigFileParser.parse = lambda self, path: smaller(parse(self, path))
    if os.environ.get("DOCS_PARSE_ONLY"):
        cli.run = only_parse
        argparse.ArgumentParser.parse_known_args = functools.partialmethod(
            only_parse_known, argparse.ArgumentParser.parse_known_args
        )
    sys.argv = arguments
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")


def only_parse_known(parser: argparse.ArgumentParser, read, *given) -> None:
    """Replaces `parser.parse_known_args`, which `parse_args` also calls."""
    _, others = read(parser, *given)
    if wrong := [each for each in others if not each.startswith("--config.")]:
        parser.error(f"not flags: {wrong}")
    sys.exit()


def only_parse(*_) -> None:
    """Replaces `cli.run`: every flag and every config field must exist."""
    remaining = flags.FLAGS(sys.argv)
    assert not remaining[1:], f"not flags: {remaining[1:]}"
    if "config" in flags.FLAGS:
        from diffdepth_jax.training import experiment

        holder = flags.FlagHolder(flags.FLAGS, flags.FLAGS["config"])
        if "backend" in holder.value:
            diffdepth_jax.adverse.config.from_mapping(
                cli.chosen_mapping(holder, "source", "backend")
            )
        else:
            experiment.from_mapping(cli.mapping(holder))


def serve(connection: socket.socket) -> None:
    message, descriptors, *_ = socket.recv_fds(connection, 1 << 20, 3)
    job = json.loads(message)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
            os.chdir(job["folder"])
            os.environ.update(job["environment"])
            try:
                run(job["arguments"])
                code = 0
            except SystemExit as exit_:
                code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
                if isinstance(exit_.code, str):
                    print(exit_.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    for descriptor in descriptors:
        os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    connection.sendall(str(abs(os.waitstatus_to_exitcode(status))).encode())


def main() -> None:
    for network in SMALL:
        registry.module("network", network)
    visualize.save_curves(Path(f"{sys.argv[1]}.png"), {"step": [1], "loss": [1.0]})  # finds fonts
    gc.freeze()  # The processes need not look for garbage among all that is imported.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                serve(connection)


if __name__ == "__main__":
    main()
