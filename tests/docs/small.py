"""Makes the commands of the documentation's shell blocks small, so that they take seconds.

For `tests/script_server.py`. Configs get a network of `tests/models/networks/small_configs.py`
instead of the real one, two steps and small crops. Command-line overrides are applied after that.
With DOCS_PARSE_ONLY in the environment, a script only parses its flags and checks every field of
its config.
"""

import argparse
import functools
import os
import sys
import tempfile
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

import diffdepth_jax.adverse.config
from diffdepth_jax import cli, registry, visualize
from tests.models.networks.small_configs import SMALL

for network in SMALL:
    registry.module("network", network)
with tempfile.TemporaryDirectory() as folder:  # Matplotlib looks for fonts once.
    visualize.save_curves(Path(folder) / "curves.png", {"step": [1], "loss": [1.0]})


def prepare() -> None:
    parse = cli._ConfigFileParser.parse
    cli._ConfigFileParser.parse = lambda self, path: smaller(parse(self, path))
    if os.environ.get("DOCS_PARSE_ONLY"):
        cli.run = only_parse
        argparse.ArgumentParser.parse_known_args = functools.partialmethod(
            only_parse_known, argparse.ArgumentParser.parse_known_args
        )


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
