"""The trainings of `studies/self_diffusion.py`: what each changes of the demo's configs."""

import argparse
import dataclasses
import functools
import json
import os
import runpy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from reporting import PROJECT, git

from diffdepth_jax import atomic
from diffdepth_jax.training import experiment, loop

RECORD = "study.json"

# Fields of every training. 500 updates of 2 whole frames are 4.2 epochs of the sample. Only the
# last state is saved.
BUDGET: Mapping[str, Any] = {
    "num_steps": 500,
    "batch_size": 2,
    "checkpoint.every_steps": 500,
    "logging.every_steps": 20,
}
_TRUTH = {"objective.name": "ground_truth_diffusion"}
_PURE = _TRUTH | {"objective.decoded": "ground_truth"}
# Attention among 8 x 26 places, which is cheap; the latent has 16 x 52.
_PAPER = {"model.denoiser.variant": "paper", "model.denoiser.attention_tokens": 256}

_SAMPLE = {"model.diffusion.prediction_type": "sample"}

# Encoders with about as many channels at each stride as the demo's ResNet.
_SWIN = {
    "model.encoder": {
        "name": "swin",
        "embed_dim": 32,
        "depths": (2, 2, 2, 2),
        "num_heads": (1, 2, 4, 8),
        "window_size": 4,
        "drop_path_rate": 0.0,
    }
}
_MPVIT = {
    "model.encoder": {
        "name": "mpvit",
        "embed_dims": (32, 64, 128, 192),
        "num_layers": (1, 1, 1, 1),
        "num_paths": (2, 2, 2, 2),
        "mlp_ratios": (2.0, 2.0, 2.0, 2.0),
        "drop_path_rate": 0.0,
        "stem_stride": 2,
    }
}


def _sampler(steps: int) -> dict[str, Any]:
    return {"model.diffusion.num_inference_steps": steps}


def updates(count: int) -> dict[str, Any]:
    """Fields of a training with this many updates that saves only its last state."""
    return {"num_steps": count, "checkpoint.every_steps": count}


@dataclasses.dataclass(frozen=True)
class Method:
    """A config file, the fields that differ from it, and its name in tables."""

    config: str
    changes: Mapping[str, Any]
    title: str


METHODS: Mapping[str, Method] = {
    "regression": Method("demo_regression", {}, "regression"),
    "self": Method("demo", {}, "self-diffusion, 5 steps"),
    "truth": Method("demo", _TRUTH, "ground-truth diffusion, pixel losses through the sampler"),
    "pure": Method("demo", _PURE, "ground-truth diffusion, pure"),
    "pure_paper": Method("demo", _PURE | _PAPER, "ground-truth diffusion, pure, paper's denoiser"),
    # An error of e in predicted noise is an error of up to 25 e in the latent at the first of 5
    # steps, so predicting the clean latent itself is learned in fewer updates.
    "pure_sample": Method(
        "demo", _PURE | _PAPER | _SAMPLE, "ground-truth diffusion, pure, predicting the latent"
    ),
    "self_paper": Method("demo", _PAPER, "self-diffusion, 5 steps, paper's denoiser"),
    "self_2": Method("demo", _sampler(2), "self-diffusion, 2 steps"),
    "self_10": Method("demo", _sampler(10), "self-diffusion, 10 steps"),
    "self_15": Method("demo", _sampler(15), "self-diffusion, 15 steps"),
    "self_20": Method("demo", _sampler(20), "self-diffusion, 20 steps"),
    # As many updates as cost the same as the method's: on one core a step of regression takes 74
    # ms, with a sampler of 5 steps 119 ms, with 20 steps 184 ms.
    "regression_as_5": Method("demo_regression", updates(800), "regression at the cost of 5 steps"),
    "regression_as_20": Method(
        "demo_regression", updates(1240), "regression at the cost of 20 steps"
    ),
    "self_factor2": Method("demo", {"model.codec.factor": 2}, "self-diffusion, latent of 1/2"),
    "regression_factor2": Method(
        "demo_regression", {"model.codec.factor": 2}, "regression, latent of 1/2"
    ),
    "self_swin": Method("demo", _SWIN, "self-diffusion, Swin"),
    "regression_swin": Method("demo_regression", _SWIN, "regression, Swin"),
    "self_mpvit": Method("demo", _MPVIT, "self-diffusion, MPViT"),
    "regression_mpvit": Method("demo_regression", _MPVIT, "regression, MPViT"),
}


@dataclasses.dataclass(frozen=True)
class Training:
    """One run.

    Attributes:
        method: a key of `METHODS`.
        depth: of the training frames: "dense", or "groundtruth", the lidar's 4.5%.
        seed: of weights, data order and noise.
    """

    method: str
    depth: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.depth}-{self.seed}"

    @property
    def description(self) -> Method:
        return METHODS[self.method]

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the config file."""
        of_training = {"data.train.source.depth": self.depth, "seed": self.seed}
        return {**BUDGET, **self.description.changes, **of_training}

    def experiment(self) -> experiment.Experiment:
        """The whole config."""
        path = PROJECT / f"configs/{self.description.config}.py"
        config = runpy.run_path(str(path))["get_config"]()
        for name, value in self.changes().items():
            *parts, field = name.split(".")
            functools.reduce(getattr, parts, config)[field] = value
        return experiment.from_mapping(config.to_dict())

    def run(self, workdir: Path) -> None:
        """Trains, unless that is done, and records the cost."""
        path = workdir / self.name
        if (path / RECORD).exists():
            return
        print(f"training {self.name}", flush=True)
        commit = git("rev-parse", "--short", "HEAD") + ("+" * bool(git("diff", "HEAD")))
        exp = self.experiment()
        start = time.process_time(), time.perf_counter()
        loop.train(exp, path)
        record = dataclasses.asdict(self) | {
            "updates": exp.num_steps,
            "commit": commit,
            "cpu_seconds": round(time.process_time() - start[0], 1),
            "wall_seconds": round(time.perf_counter() - start[1], 1),
            "device": _device(),
            "config": f"configs/{self.description.config}.py",
            "changes": " ".join(f"{name}={value}" for name, value in self.changes().items()),
        }
        atomic.write_text(path / RECORD, json.dumps(record))


def planned(seeds: int) -> list[Training]:
    """All trainings, the most important first."""
    depths = ("dense", "groundtruth")

    def both(*methods: str, seed: int) -> list[tuple[str, str, int]]:
        return [(method, depth, seed) for method in methods for depth in depths]

    order = [*both("regression", "self", "pure_paper", "truth", seed=0), ("self_20", "dense", 0)]
    order += both("pure_sample", seed=0)
    for seed in range(1, seeds):
        order += [("regression", "dense", seed), ("self", "dense", seed)]
        order += [("regression_as_5", "dense", seed - 1)]
        order += both("regression", "self", "pure_sample", seed=seed)[1:]
        order += [("self_10", "dense", 0), ("self_2", "dense", 0)] if seed == 1 else []
    order += [("regression_as_5", "dense", seeds - 1), ("self_15", "dense", 0)]
    for seed in range(1, seeds):
        order += both("truth", "pure_paper", seed=seed)
    order += [("self_factor2", "dense", 0), ("regression_factor2", "dense", 0)]
    for encoder in ("swin", "mpvit"):
        order += [(f"{method}_{encoder}", "dense", 0) for method in ("self", "regression")]
    order += [("regression_as_20", "dense", 0), *both("self_paper", seed=0)]
    order += [each for seed in range(seeds) for each in both("pure", seed=seed)]
    return [Training(*each) for each in dict.fromkeys(order)]


def command_line(description: str, *, only: str) -> argparse.Namespace:
    """Parses the flags of a study; `only` is an example for the help of --only."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--workdir", type=Path, required=True, help="for runs and results")
    parser.add_argument(
        "--seeds", type=int, default=3, help="number of seeds for methods that use several"
    )
    parser.add_argument("--only", help=f"train only these, such as {only}")
    parser.add_argument("--score_only", action="store_true", help="train nothing")
    return parser.parse_args()


def carry_out(
    trainings: Sequence[Training],
    flags: argparse.Namespace,
    score: Callable[[Training, Path], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Trains what the flags ask for and returns the scores of all finished trainings."""
    # Trainings that differ only in the seed are compiled once.
    jax.config.update("jax_compilation_cache_dir", str(flags.workdir / "compiled"))
    for training in trainings if not flags.score_only else ():
        if flags.only is None or training.name in flags.only.split(","):
            training.run(flags.workdir)
            jax.clear_caches()
    rows: list[dict[str, Any]] = []
    for training in trainings:
        if (flags.workdir / training.name / RECORD).exists():
            rows += score(training, flags.workdir)
            jax.clear_caches()
    return rows


def _device() -> str:
    kind = jax.devices()[0].device_kind
    return f"{len(os.sched_getaffinity(0))} CPU core (shared)" if kind == "cpu" else kind
