r"""Writes a source as a few large files (ArrayRecord), which the source `tfds` reads.

    python tools/prepare_data.py kitti --root=RAW --depth_root=ANNOTATED --split=eigen_train \
        --output=data/tfds

NAME is a source (a file in diffdepth_jax/data/sources); every field of its `Config` is an option.
Values are parsed as Python if possible (`--cameras="['image_02']"`), otherwise as text.

The result equals the source bit for bit, so training on either gives the same results. Use it with

    config.data.train.source = {
        "name": "tfds", "root": "data/tfds", "dataset": "kitti", "split": "eigen_train"
    }

Running the same command resumes an interrupted run with the unfinished file; the data set appears
under its final name when it is complete. An unreadable frame ends the run: repair it, or exclude it
with a list file.
"""

from pathlib import Path
from typing import Any

from diffdepth_jax import cli, ending, registry, usage
from diffdepth_jax.config import chosen, to_mapping


def prepare(config: Any, output: Path, **settings: int | bool) -> Path:
    """Writes the source selected by a config, unless that has already been done.

    Args:
        config: the config of a source.
        output: the folder of all prepared sources.
        settings: settings of `tfds.write`.

    Returns:
        The folder of the data set.

    Raises:
        DataError, FileError: if it cannot be read or written, or the folder has other content.
    """
    from diffdepth_jax.data import pipeline  # imports JAX, which --help does not need
    from diffdepth_jax.data.sources import tfds

    source = pipeline.build_source(config)
    folder = tfds.directory(output, config.name, config.split)
    record = {"frames": len(source), "source": to_mapping(config)}
    if folder.exists():
        tfds.require_same(folder, record)
    else:
        tfds.write(source, folder, tfds.split_name(config.split), record, **settings)
    return folder


def main() -> None:
    parser = usage.argument_parser(__doc__)
    names = [name for name in registry.names("source") if name not in ("tfds", "mixture")]
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--output", required=True, help="the folder to write into")
    parser.add_argument("--frames_per_file", type=int, default=1000, help="1000 by default")
    parser.add_argument("--threads", type=int, default=2, help="threads that read and encode")
    flags, words = parser.parse_known_args()
    if flags.frames_per_file < 1 or flags.threads < 1:
        parser.error("--frames_per_file and --threads must be at least 1")
    output = cli.directory("--output", flags.output)
    fields = {"name": flags.name} | cli.fields(words)
    config = chosen("source", fields, resolve=registry.module, path=flags.name)
    try:
        folder = prepare(
            config,
            output,
            frames_per_file=flags.frames_per_file,
            num_threads=flags.threads,
            progress=True,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: run the same command to resume") from None
    print(folder)


if __name__ == "__main__":
    with ending.one_line_errors():
        main()
