r"""Generates adverse images (night, rain, fog, snow, glass, mirrors) with labels and a manifest.

    python generate_adverse.py --config=configs/adverse_demo.py --workdir=OUT \
        --config.teacher.checkpoint=runs/demo
    python generate_adverse.py --config=configs/adverse_driving.py --workdir=OUT --shard=0/4

The same command resumes an interrupted run, and does nothing in a finished workdir. Several
machines can share a workdir with --shard=0/4, ... (detected in a SLURM job array); --merge then
writes the manifest. The exit status is 1 if images failed; running the same command retries them.
It is 2 for errors reported in one line, and 130 after Ctrl-C.
"""

import os
import sys

from absl import flags

from diffdepth_jax import cli, ending

_COMMON = {
    "Input and output": {"config": "FILE", "workdir": "DIR", "python": "FILE"},
    "Several machines": {"shard": "I/N", "merge": ""},
}


def run() -> None:
    """Parses the command line and generates the images."""
    values = flags.FLAGS
    config_flag = cli.define_config()
    workdir = cli.define_directory("workdir", "Where images, labels and the manifest go.")
    flags.DEFINE_string(
        "python", None, "Python interpreter with PyTorch; `make torch` installs one."
    )
    flags.DEFINE_string(
        "shard", None, "Only every N-th block of frames, starting with number I (from 0)."
    )
    flags.DEFINE_bool("merge", False, "Generate nothing; check the shards and write the manifest.")
    flags.mark_flag_as_required("workdir")

    def main(_: list[str]) -> None:
        # The generator may share the GPU, of which JAX would reserve three quarters.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        with ending.importing():
            from diffdepth_jax.adverse import config, runner, shards, summary

        shard = None if values.merge else shards.chosen(values.shard, os.environ)
        result = runner.run(
            config.from_mapping(cli.chosen_mapping(config_flag, "source", "backend")),
            workdir.value,
            python=values.python,
            shard=shard,
            merge=values.merge,
        )
        if shard is not None and not result.complete:
            print(f"shard {shard[0]}/{shard[1]} is done; use --merge once all shards are done")
        print(summary.table(result.records))
        if failed := result.failed:
            sys.exit(
                f"error: {len(failed)} images failed (the first, {failed[0].id}: "
                f"{failed[0].reason}); run the same command to retry them"
            )

    cli.run(main, _COMMON)


if __name__ == "__main__":
    run()
