"""Trains, evaluates and draws pictures of an experiment.

    python train.py --config=configs/demo.py --workdir=runs/demo [--config.batch_size=8 ...]

Started again with the same workdir, training continues from its last checkpoint.
"""

from absl import flags

from diffdepth_jax import cli

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, logs and results go.")
flags.mark_flag_as_required("workdir")


def main(_: list[str]) -> None:
    # Imported here, so that a mistake in the flags is told at once.
    from diffdepth_jax.evaluation import report
    from diffdepth_jax.training import evaluation, experiment
    from diffdepth_jax.training.loop import train_and_evaluate

    config = cli.mapping(CONFIG)
    evaluation.check_data(experiment.from_mapping(config))
    print(report.table(train_and_evaluate(config, WORKDIR.value)))


if __name__ == "__main__":
    cli.run(main)
