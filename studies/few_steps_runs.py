"""The trainings of `studies/few_steps.py`: what each changes of its config."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import self_diffusion_runs
from self_diffusion_runs import Method, updates

COUNTS = (1, 2, 4)


# Processor milliseconds per update, from `studies/self_diffusion.py`: 184 with a sampler of 20
# steps and 119 with 5, so 108 for the mean of the drawn numbers.
UPDATE_MS = {"self_20": 184, "few": 108}

METHODS: Mapping[str, Method] = {
    "self_20": self_diffusion_runs.METHODS["self_20"],
    # As many updates as cost the same as 500 with a sampler of 20 steps.
    "few": Method("few_steps_demo", updates(850), "drawn"),
    "few_500": Method("few_steps_demo", {}, "drawn, equal updates"),
    # A trained sampler, and its distillation.
    "trailing_20": Method(
        "demo",
        {
            "model.diffusion.num_inference_steps": 20,
            "model.diffusion.timestep_spacing": "trailing",
        },
        "20 steps, trailing",
    ),
    "distilled": Method("few_steps_consistency", updates(300), "consistency distillation"),
    # The same sampler, trained further with few steps and no teacher.
    "tuned": Method(
        "demo",
        {
            "model.diffusion.num_inference_steps": 4,
            "model.diffusion.timestep_spacing": "trailing",
            "objective.step_counts": COUNTS,
            "optimizer.learning_rate": 5e-4,
            "optimizer.warmup_steps": 20,
        }
        | updates(300),
        "trained further with 1, 2 or 4 steps",
    ),
}


@dataclasses.dataclass(frozen=True)
class Training(self_diffusion_runs.Training):
    """A training of this study, with its own methods; see the base class.

    Attributes:
        teacher: the run that is distilled or trained further, if any.
    """

    teacher: str | None = None

    @property
    def description(self) -> Method:
        return METHODS[self.method]

    def changes(self) -> dict[str, Any]:
        start = {"init.network": self.teacher} if self.teacher else {}
        if self.method == "distilled":
            start["teacher.checkpoint"] = self.teacher
        return super().changes() | start


def planned(seeds: int, workdir: Path) -> list[Training]:
    """All trainings, the most important first; teachers are runs in `workdir`."""
    order = [(method, seed) for seed in range(seeds) for method in ("self_20", "few")]
    order += [(method, 0) for method in METHODS if (method, 0) not in order]

    def training(method: str, seed: int) -> Training:
        teacher = None
        if method in ("distilled", "tuned"):
            teacher = str(workdir / Training("trailing_20", "dense", seed).name)
        return Training(method, "dense", seed, teacher)

    return [training(*each) for each in order]
