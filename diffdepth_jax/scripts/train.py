r"""Trains a network, evaluates it and draws figures.

    python train.py --config=configs/demo.py --workdir=runs/demo
    python train.py --config=configs/kitti.py --workdir=runs/kitti --config.batch_size=8 \
        --config.data.train.source.root=/data/kitti_raw

Started again with the same workdir, training resumes from its last checkpoint. On SIGTERM or SIGINT
it finishes the step, saves, says how to resume, and exits with 143 or 130 (128 + the signal). A
second signal ends it immediately. The exit status is 2 for errors reported in one line, for example
if another run uses the same workdir.

Several processes can train one model under SLURM, Open MPI or Kubernetes, or with --coordinator,
--num_processes and --process_id; see docs/scaling.md.
"""

import sys

from absl import flags

from diffdepth_jax import cli, ending

_COMMON = {
    "Experiment": {"config": "FILE", "workdir": "DIR", "allow_config_changes": ""},
    "Debugging": {"debug_nans": ""},
    "Several processes (docs/scaling.md)": {
        "coordinator": "HOST:PORT",
        "num_processes": "N",
        "process_id": "N",
    },
}


def run() -> None:
    """Parses the command line, trains and evaluates."""
    config = cli.define_config()
    cli.define_processes()
    workdir = cli.define_directory("workdir", "Where checkpoints, logs and results go.")
    allow_config_changes = flags.DEFINE_bool(
        "allow_config_changes", False, "Resume even if the config has changed."
    )
    debug_nans = flags.DEFINE_bool(
        "debug_nans", False, "Find the operation that produced a NaN; takes more memory."
    )
    flags.mark_flag_as_required("workdir")

    def main(_: list[str]) -> None:
        with ending.importing():  # imported here, so that wrong flags are reported immediately
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
        except (
            KeyboardInterrupt
        ) as interrupt:  # before or after training, or a second one during it
            raise KeyboardInterrupt("ended at once; run the same command to resume") from interrupt
        if distributed.processes().is_first:
            print(tables.table(result))

    cli.run(main, _COMMON)


if __name__ == "__main__":
    run()
