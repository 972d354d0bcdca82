r"""Night, rain, fog, snow, glass and mirrors from clean images, with labels and a manifest.

    python generate_adverse.py --config=configs/adverse_demo.py --workdir=OUT \
        --config.teacher.checkpoint=runs/demo
    python generate_adverse.py --config=configs/adverse_driving.py --workdir=OUT --shard=0/4

The same command resumes an interrupted run, and does nothing in a finished workdir. Several
machines share a workdir with --shard=0/4, ... (a SLURM job array says so itself); --merge then
writes the manifest. The exit status is 1 if images have failed: the same command tries those again.
Mistakes and failures that are reported in one line exit with 2, Ctrl-C with 130.
"""

import os
import sys

from absl import flags

from diffdepth_jax import cli

_COMMON = {
    "What and where": {"config": "FILE", "workdir": "DIR", "python": "FILE"},
    "Several machines": {"shard": "I/N", "merge": ""},
}


def run() -> None:
    """Reads the command line and makes the images."""
    values = flags.FLAGS
    config_flag = cli.define_config()
    workdir = cli.define_directory("workdir", "Where images, labels and the manifest go.")
    flags.DEFINE_string("python", None, "The Python that has PyTorch; `make torch` installs one.")
    flags.DEFINE_string(
        "shard", None, "Every N-th block of frames only, from the I-th (counted from 0)."
    )
    flags.DEFINE_bool("merge", False, "Make no images: check the shards and write the manifest.")
    flags.mark_flag_as_required("workdir")

    def main(_: list[str]) -> None:
        # A generator may share the GPU, which JAX would take three quarters of.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        with cli.importing():
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
            print(f"shard {shard[0]}/{shard[1]} is done; --merge puts all together")
        print(summary.table(result.records))
        if failed := result.failed:
            sys.exit(
                f"error: {len(failed)} images failed (the first, {failed[0].id}: "
                f"{failed[0].reason}); the same command tries them again"
            )

    cli.run(main, _COMMON)


if __name__ == "__main__":
    run()
