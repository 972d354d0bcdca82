"""The optimiser and its learning-rate schedule, built by optax from one dataclass."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import jax
import optax

from diffdepth_jax.errors import ConfigError

_STEPS = 2**31  # are counted in int32


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam or AdamW with a schedule in steps.

    Attributes:
        name: `adam` (the DiffusionDepth release) or `adamw` (the paper).
        learning_rate: the peak rate, after the warm-up.
        schedule: `constant`; `cosine`, down to zero at the last step; or `steps`, which multiplies
            the rate by `factors[i]` from step `boundaries[i]` on. The release trains with a linear
            warm-up over the first epoch, then factors 0.2 and 0.04 from epochs 10 and 15 on.
        warmup_steps: update i < warmup_steps uses (i + 1) / warmup_steps of the rate.
        weight_decay: AdamW's; applied to arrays of two or more dimensions, so not to biases nor to
            the scales of norms.
        b1, b2, eps: Adam's.
        clip_norm: gradients are scaled down to this global norm; None leaves them alone.
        multipliers: factors of the learning rate for parts of the network by their names, such as
            {"encoder": 0.1} (an option of the release); 1 for those that are not named. A part of
            factor 0 is frozen: it has no gradients and no optimiser state, and works as in
            inference, so that its batch statistics stay what they were.
    """

    name: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    warmup_steps: int = 0
    boundaries: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = None
    multipliers: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive")
        if not 0 <= self.warmup_steps < _STEPS:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be 0 to 2**31 - 1")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must not be negative")
        if self.weight_decay and self.name == "adam":
            raise ValueError("weight_decay needs name='adamw': adam has none")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be positive or None")
        if min(self.multipliers.values(), default=1.0) < 0:
            raise ValueError(f"multipliers are {self.multipliers}; they must not be negative")
        if len(self.boundaries) != len(self.factors):
            raise ValueError(
                f"boundaries {self.boundaries} and factors {self.factors} must be equally many"
            )
        if (self.schedule == "steps") != bool(self.boundaries):
            raise ValueError("boundaries and factors belong to schedule='steps', which needs them")
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"boundaries {self.boundaries} must increase")
        if self.boundaries and self.boundaries[-1] >= _STEPS:
            raise ValueError(f"boundaries {self.boundaries} must be below 2**31")
        if self.boundaries and self.boundaries[0] < self.warmup_steps:
            raise ValueError(
                f"boundaries {self.boundaries} must come after the warm-up of {self.warmup_steps}"
            )

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parts that are not trained."""
        return tuple(name for name, factor in self.multipliers.items() if factor == 0)

    def check_parts(self, parts: Iterable[str]) -> None:
        """Raises ConfigError unless all multipliers are of these parts and leave one to train."""
        parts = sorted(parts)
        unknown = sorted(self.multipliers.keys() - set(parts))
        if unknown:
            raise ConfigError(
                f"optimizer.multipliers names {', '.join(unknown)}, but the network's parts are "
                f"{', '.join(parts)}"
            )
        if set(parts) <= set(self.frozen):
            raise ConfigError(
                f"optimizer.multipliers {self.multipliers} freezes all parts of the network: "
                f"leave one to train"
            )


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns `step -> learning rate` for updates 0 .. num_steps - 1.

    Raises:
        ValueError: if these are more than the counter of updates can hold.
    """
    if num_steps >= _STEPS:
        raise ValueError(f"num_steps is {num_steps}; it must be below 2**31")
    if config.schedule == "cosine":
        # Counted from the end of the warm-up, where join_schedules starts it; a trial run of a few
        # steps never gets there.
        decay_steps = max(num_steps - config.warmup_steps, 1)
        after = optax.cosine_decay_schedule(config.learning_rate, decay_steps)
    elif config.schedule == "steps":
        rates = [config.learning_rate * factor for factor in (1.0, *config.factors)]
        after = optax.join_schedules(
            [optax.constant_schedule(rate) for rate in rates],
            [boundary - config.warmup_steps for boundary in config.boundaries],
        )
    else:
        after = optax.constant_schedule(config.learning_rate)
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(
        config.learning_rate / config.warmup_steps, config.learning_rate, config.warmup_steps - 1
    )
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def build(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optax chain: clipping, Adam or AdamW at the schedule's rate, the multipliers."""
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    adam = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    if config.name == "adam":
        parts.append(optax.adam(schedule, **adam))
    else:
        decay = config.weight_decay
        parts.append(optax.adamw(schedule, weight_decay=decay, mask=_decayed, **adam))
    if config.multipliers:
        parts.append(optax.stateless(lambda updates, _: _multiplied(updates, config.multipliers)))
    return optax.chain(*parts)


def _decayed(params: Any) -> Any:
    return jax.tree.map(lambda array: array.ndim > 1, params)


def _multiplied(updates: dict[str, Any], multipliers: dict[str, float]) -> dict[str, Any]:
    return {
        name: optax.tree.scale(multipliers.get(name, 1.0), update)
        for name, update in updates.items()
    }
