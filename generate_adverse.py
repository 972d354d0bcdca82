"""Night, rain, fog, snow, glass and mirrors from clean images, with labels and a manifest.

    python generate_adverse.py --config=configs/adverse_driving.py --workdir=OUT [--config...]

The same command goes on after whatever ended it, and does nothing in a finished workdir. Several
machines share a workdir with --shard=0/4, ... (a SLURM job array says so itself); --merge then
writes the manifest. The exit status is 1 if images have failed: the same command tries those again.
Mistakes and failures that are reported in one line exit with 2, Ctrl-C with 130.
"""

import os
import sys

from absl import flags

from diffdepth_jax import cli

FLAGS = flags.FLAGS
CONFIG = cli.define_config()
WORKDIR = cli.define_directory("workdir", "Where images, labels and the manifest go.")
flags.DEFINE_string("python", None, "The interpreter with PyTorch; `make torch` installs one.")
flags.DEFINE_string("shard", None, "I/N: do only every Nth block of frames, from the Ith.")
flags.DEFINE_bool("merge", False, "Make nothing: check the shards and write the manifest.")
flags.mark_flag_as_required("workdir")


def main(_: list[str]) -> None:
    # A generator may share the GPU, which JAX would take three quarters of.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with cli.importing():
        from diffdepth_jax.adverse import config, runner, shards, summary

    shard = None if FLAGS.merge else shards.chosen(FLAGS.shard, os.environ)
    result = runner.run(
        config.from_mapping(cli.chosen_mapping(CONFIG, "source", "backend")),
        WORKDIR.value,
        python=FLAGS.python,
        shard=shard,
        merge=FLAGS.merge,
    )
    if not result.complete:
        print(f"shard {shard[0]}/{shard[1]} is done; --merge puts all together")
    print(summary.table(result.records))
    if failed := result.failed:
        sys.exit(
            f"error: {len(failed)} images failed (the first, {failed[0].id}: {failed[0].reason}); "
            "the same command tries them again"
        )


if __name__ == "__main__":
    cli.run(main)
