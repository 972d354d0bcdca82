"""What an objective's config may be beyond its weights: types that training asks for."""

from dataclasses import dataclass


class DistilsSampler:
    """Capability of a config: the objective learns from the sampler of a trained network, the
    teacher, and not from its depth."""


@dataclass(frozen=True, kw_only=True)
class SupportsStepCounts:
    """Capability of a config: the trained network supports several numbers of denoising steps.

    Attributes:
        step_counts: these numbers; empty for the model's own number only. At the end, training
            computes the decoder's statistics for the others (`training.step_counts`).
    """

    step_counts: tuple[int, ...] = ()

    def check_counts(self) -> None:
        """Raises ValueError unless these are valid numbers of steps without duplicates."""
        counts = self.step_counts
        if len(set(counts)) < len(counts) or min(counts, default=1) < 1:
            raise ValueError(f"step_counts are {counts}; they must be at least 1, and different")
