"""An experiment as one frozen dataclass; `configs/*.py` set its fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from diffdepth_jax import config as config_lib
from diffdepth_jax import registry
from diffdepth_jax.config import choice
from diffdepth_jax.data import pipeline
from diffdepth_jax.data.experiment_data import ExperimentData
from diffdepth_jax.data.pipeline import TrainIterator
from diffdepth_jax.evaluation.run.config import EvaluationConfig
from diffdepth_jax.models.networks.network import HasEncoder
from diffdepth_jax.training import optimizer as optimizer_lib
from diffdepth_jax.training.checkpoint import CheckpointConfig
from diffdepth_jax.training.logging import LoggingConfig
from diffdepth_jax.training.objectives.objective import DistilsSampler
from diffdepth_jax.training.optimizer import OptimizerConfig
from diffdepth_jax.training.pretrained import InitConfig
from diffdepth_jax.training.sharding import MeshConfig
from diffdepth_jax.training.teacher import TeacherConfig


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained, on which data and how, and how it is evaluated.

    Attributes:
        model: `name` of a network, optionally a `variant`, and the fields of its `Config`.
        objective: `name` of an objective and the fields of its `Config`.
        data, init, optimizer, mesh, evaluation, checkpoint, logging: see their dataclasses.
        teacher: the network whose depth of the clean images is the label, computed during training;
            None, or without a checkpoint, if the data have labels. With the objective
            "consistency_distillation", the trained sampler; the data then have labels.
        num_steps: number of updates in the whole run.
        batch_size: images per update, across all devices.
        seed: seed of the initial weights, the order and augmentation of the data, and the noise.
        ema_decay: decay of the parameters' moving average, which is then used for evaluation; 0 for
            no average.
        accumulate: process an update's images in this many parts, one after another. This takes
            less memory and gives the same gradient, except that anything pooled over a batch is
            pooled per part: BatchNorm, and losses with reduction="batch" (silog), which are then
            averaged over the parts.
        compute_dtype: type used by convolutions and matrix products in training. Parameters,
            normalisation statistics, losses and the sampler's latent are always float32.
    """

    data: ExperimentData
    evaluation: EvaluationConfig
    num_steps: int
    batch_size: int
    model: Any = choice("network")
    objective: Any = choice("objective")
    init: InitConfig = InitConfig()
    teacher: TeacherConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    seed: int = 0
    ema_decay: float = 0.0
    accumulate: int = 1
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_steps and batch_size must be at least 1, not {self.num_steps} and "
                f"{self.batch_size}"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be 0 to 2**32 - 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must be in [0, 1)")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate is {self.accumulate}; it must divide batch_size, {self.batch_size}"
            )
        if self.init.encoder is not None and not isinstance(self.model, HasEncoder):
            raise ValueError(
                f"init.encoder is {self.init.encoder!r}, but the network {self.model.name!r} has "
                "no encoder: set it to None"
            )
        optimizer_lib.learning_rate_schedule(self.optimizer, self.num_steps)

    @property
    def has_teacher(self) -> bool:
        """Whether training uses a teacher."""
        return self.teacher is not None and self.teacher.checkpoint is not None

    @property
    def distils_sampler(self) -> bool:
        """Whether the objective learns from the teacher's sampler instead of its depth."""
        return isinstance(self.objective, DistilsSampler)

    @property
    def labels_online(self) -> bool:
        """Whether a teacher labels the batches."""
        return self.has_teacher and not self.distils_sampler


def train_iterator(exp: Experiment, shard: tuple[int, int] = (0, 1)) -> TrainIterator:
    """The training batches of an experiment; otherwise like `pipeline.train_iterator`."""
    return pipeline.train_iterator(
        exp.data.train,
        exp.batch_size,
        exp.seed,
        exp.model.input_spec,
        shard=shard,
        on_error=exp.data.on_error,
        clean_images=exp.labels_online,
    )


def from_mapping(mapping: Mapping[str, Any]) -> Experiment:
    """Reads a nested mapping strictly; a ConfigError names the wrong field and the remedy."""
    return config_lib.from_mapping(Experiment, mapping, resolve=registry.module)
