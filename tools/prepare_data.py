"""Writes a source once as a few large files (ArrayRecord), from which it is read again by `tfds`.

    python tools/prepare_data.py kitti --root=RAW --depth_root=ANNOTATED --split=eigen_train \
        --output=data/tfds

NAME is a source (a file of diffdepth_jax/data/sources); every field of its `Config` is an option.
Values are read as Python where they can be (`--cameras="['image_02']"`), otherwise as text.

What is read back equals the source bit for bit, so a run trains on either alike. Its config says

    config.data.train.source = {
        "name": "tfds", "root": "data/tfds", "dataset": "kitti", "split": "eigen_train"
    }

An interrupted run goes on with the unfinished file when the same command is given again; the data
set appears under its name when it is whole. A frame that cannot be read ends the run: repair it or
leave it out by a list file.
"""

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffdepth_jax import registry
from diffdepth_jax.config import from_mapping, to_mapping
from diffdepth_jax.data import pipeline
from diffdepth_jax.data.sources import tfds


def prepare(config: Any, output: Path, **settings: int | bool) -> Path:
    """Writes the source that a config names, unless that is done already.

    Args:
        config: of a source.
        output: the folder of all prepared sources.
        settings: of `tfds.write`.

    Returns:
        The folder of the data set.

    Raises:
        ValueError, OSError: if it cannot be read or written, or the folder holds something else.
    """
    source = pipeline.build_source(config)
    folder = tfds.directory(output, config.name, config.split)
    record = {"frames": len(source), "source": to_mapping(config)}
    if folder.exists():
        tfds.require_same(folder, record)
    else:
        tfds.write(source, folder, tfds.split_name(config.split), record, **settings)
    return folder


def options(words: Sequence[str]) -> dict[str, Any]:
    """The fields of a source's config from `--field=value`.

    Raises:
        ValueError: if a word is something else.
    """
    fields: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not equals:
            raise ValueError(f"{word!r} is no option of the source: write --field=value")
        try:
            fields[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            fields[name] = text
    return fields


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [name for name in registry.names("source") if name != "tfds"]
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--output", type=Path, required=True, help="the folder to write into")
    parser.add_argument("--frames_per_file", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2, help="that read and encode")
    flags, words = parser.parse_known_args()
    if flags.frames_per_file < 1 or flags.threads < 1:
        parser.error("--frames_per_file and --threads must be at least 1")
    try:
        fields = {"name": flags.name} | options(words)
        module = registry.module("source", flags.name)
        folder = prepare(
            from_mapping(module.Config, fields, path=flags.name),
            flags.output,
            frames_per_file=flags.frames_per_file,
            num_threads=flags.threads,
            progress=True,
        )
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    print(folder)


if __name__ == "__main__":
    main()
