"""Trains, evaluates and draws pictures of an experiment.

    python train.py --config=configs/demo.py --workdir=runs/demo [--config.batch_size=8 ...]

Started again with the same workdir, training continues from its last checkpoint, whatever ended it.
On SIGTERM or SIGINT it finishes the step, saves, says where to go on, and exits with 143 or 130
(128 + the signal): not 0, as the run is not done. A second signal ends it at once. Mistakes and
failures that are reported in one line exit with 2, such as another run at work in the same workdir.

Several processes train one model under SLURM, Open MPI or Kubernetes, or where --coordinator,
--num_processes and --process_id are given; see docs/scaling.md.
"""

import sys

from absl import flags

from diffdepth_jax import cli


def run() -> None:
    """Reads the command line, trains and evaluates."""
    config = cli.define_config()
    cli.define_processes()
    workdir = cli.define_directory("workdir", "Where checkpoints, logs and results go.")
    allow_config_changes = flags.DEFINE_bool(
        "allow_config_changes", False, "Go on from checkpoints of another config."
    )
    debug_nans = flags.DEFINE_bool(
        "debug_nans", False, "Find the operation that made a loss or gradient NaN; more memory."
    )
    flags.mark_flag_as_required("workdir")

    def main(_: list[str]) -> None:
        with cli.importing():  # Here, so that a mistake in the flags is reported at once.
            from diffdepth_jax.evaluation.report import tables
            from diffdepth_jax.training import distributed
            from diffdepth_jax.training.interruption import Interrupted
            from diffdepth_jax.training.loop import train_and_evaluate

        distributed.start(**cli.processes())
        try:
            result = train_and_evaluate(
                cli.mapping(config),
                workdir.value,
                allow_config_changes=allow_config_changes.value,
                debug_nans=debug_nans.value,
            )
        except Interrupted as interrupted:
            print(interrupted)
            sys.exit(interrupted.exit_code)
        except KeyboardInterrupt as interrupt:  # Before or after training, or a second one in it.
            raise KeyboardInterrupt("ended at once; the same command goes on") from interrupt
        if distributed.processes().is_first:
            print(tables.table(result))

    cli.run(main)


if __name__ == "__main__":
    run()
