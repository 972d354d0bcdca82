"""What can be told of an evaluation before it, or a long training, begins."""

from diffdepth_jax.data.experiment_data import ExperimentData, first_evaluation_sample
from diffdepth_jax.evaluation.report import comparisons
from diffdepth_jax.evaluation.run.config import EvaluationConfig


def check_data(data: ExperimentData, config: EvaluationConfig) -> None:
    """Reads one evaluation frame and what results are compared with, so that no long training ends
    in an error about them."""
    sample = first_evaluation_sample(data)
    for protocol in config.build_all():
        protocol.prepare(sample["image"])
        comparisons.read(config.compare, protocol, {})
