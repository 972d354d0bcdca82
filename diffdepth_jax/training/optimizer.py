"""The optimiser and its learning rate schedule, built with optax from one dataclass."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.models.encoders.encoder import layers_to_the_end

_STEPS = 2**31  # limit of the int32 counter


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam or AdamW with a learning rate schedule in steps.

    Attributes:
        name: `adam` (the DiffusionDepth release) or `adamw` (the paper).
        learning_rate: peak learning rate, after the warm-up.
        schedule: `constant`; `cosine`, down to zero at the last step; or `steps`, which multiplies
            the rate by `factors[i]` from step `boundaries[i]` on. The release uses a linear warm-up
            over the first epoch, then factors 0.2 and 0.04 from epochs 10 and 15 on.
        warmup_steps: update i < warmup_steps uses (i + 1) / warmup_steps of the rate.
        weight_decay: AdamW's; only applied to arrays of two or more dimensions, so not to biases or
            norm scales.
        b1, b2, eps: Adam's.
        clip_norm: maximum global gradient norm; None for no clipping.
        multipliers: learning rate factors by part of the network, such as {"encoder": 0.1} (an
            option of the release); 1 for other parts. A part with factor 0 is frozen: it has no
            gradients and no optimiser state, and runs in inference mode, so its batch statistics do
            not change.
        layer_decay: layer-wise learning rate decay in the encoder, as in BEiT (Bao et al. 2021,
            arXiv:2106.08254): a layer n below the rest of the network has its rate multiplied by
            layer_decay^n, in addition to `multipliers`; see `layers_to_the_end` in
            `models.encoders.encoder`. 1 for the same rate everywhere.
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
    layer_decay: float = 1.0

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
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1")
        if len(self.boundaries) != len(self.factors):
            raise ValueError(
                f"boundaries {self.boundaries} and factors {self.factors} must have the same length"
            )
        if (self.schedule == "steps") != bool(self.boundaries):
            raise ValueError("boundaries and factors must be set if and only if schedule='steps'")
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
        """The frozen parts."""
        return tuple(name for name, factor in self.multipliers.items() if factor == 0)

    def check_parts(self, params: Mapping[str, Any]) -> None:
        """Raises ConfigError unless all multipliers name parts of these params and leave one to
        train, and there is an encoder if layer_decay is used."""
        parts = sorted(params)
        unknown = sorted(self.multipliers.keys() - set(parts))
        if unknown:
            raise ConfigError(
                f"optimizer.multipliers names {', '.join(unknown)}, but the network's parts are "
                f"{', '.join(parts)}"
            )
        if set(parts) <= set(self.frozen):
            raise ConfigError(
                f"optimizer.multipliers {self.multipliers} freezes all parts of the network: leave "
                "at least one to train"
            )
        if self.layer_decay < 1:
            path = _path_to_encoder(params)
            if path is None or path[0] in self.frozen:
                reason = "has no encoder" if path is None else f"has its {path[0]} frozen"
                raise ConfigError(
                    f"optimizer.layer_decay is {self.layer_decay}, but the network {reason}: set "
                    "it to 1"
                )


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns `step -> learning rate` for updates 0 .. num_steps - 1.

    Raises:
        ValueError: if num_steps exceeds the update counter's range.
    """
    if num_steps >= _STEPS:
        raise ValueError(f"num_steps is {num_steps}; it must be below 2**31")
    if config.schedule == "cosine":
        # Counted from the end of the warm-up, as in join_schedules; a short trial run may never get
        # there.
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
    """Returns the optax chain: clipping, Adam or AdamW with the schedule, and multipliers."""
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    adam = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    if config.name == "adam":
        parts.append(optax.adam(schedule, **adam))
    else:
        decay = config.weight_decay
        parts.append(optax.adamw(schedule, weight_decay=decay, mask=_decayed, **adam))
    if config.multipliers or config.layer_decay < 1:
        parts.append(optax.stateless(lambda updates, _: _multiplied(updates, config)))
    return optax.chain(*parts)


def learning_rate_factors(config: OptimizerConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Learning rate factors: a tree like the top of `params`, down to the encoder's layers if their
    rates differ."""
    factors: dict[str, Any] = {part: config.multipliers.get(part, 1.0) for part in params}
    path = _path_to_encoder(params)
    if config.layer_decay == 1 or path is None:
        return factors
    top, *inner = path
    encoder = params[top][inner[0]] if inner else params[top]
    layers = {
        part: factors[top] * config.layer_decay**count
        for part, count in layers_to_the_end(encoder).items()
    }
    if inner:
        layers = dict.fromkeys(params[top], factors[top]) | {inner[0]: layers}
    return factors | {top: layers}


def _decayed(params: Any) -> Any:
    return jax.tree.map(lambda array: array.ndim > 1, params)


def _multiplied(updates: dict[str, Any], config: OptimizerConfig) -> dict[str, Any]:
    return jax.tree.map(optax.tree.scale, learning_rate_factors(config, updates), updates)


def _path_to_encoder(params: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Path of the encoder's params: at the top, or in the relative core of a metric network."""
    if "encoder" in params:
        return ("encoder",)
    return ("core", "encoder") if "encoder" in params.get("core", ()) else None
