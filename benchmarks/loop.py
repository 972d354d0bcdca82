"""Speed of the training loop itself, around a model that costs next to nothing.

    python benchmarks/loop.py [--steps=2000]

Trains with the real loop on the committed sample (frames in memory, cropped and flipped), with log
rows and checkpoints as in a run, and prints rows for results/loop.csv: steps per second; processor
time per step over all threads; the progress bar's share of the time; and, with a state of 50 MB,
how long a save blocks the loop, and the duration of steps while it is being written and otherwise.
"""

import argparse
import contextlib
import dataclasses
import os
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import harness
import jax
from tqdm import tqdm

from diffdepth_jax import registry
from diffdepth_jax.data import pipeline
from diffdepth_jax.models.networks.network import NetworkConfig
from diffdepth_jax.training import experiment, loop
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.typing import InputSpec

_FIRST = 50  # steps that are left out
SAMPLE = harness.PROJECT / "sample"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NothingConfig(NetworkConfig):
    name: Literal["nothing"] = "nothing"
    parameters: int = 1000


@dataclasses.dataclass(frozen=True)
class Network:
    config: NothingConfig

    def init_variables(self, key: jax.Array) -> dict:
        # a matrix, like a network's
        return {"params": {"kernel": jax.random.normal(key, (self.config.parameters // 100, 100))}}


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    name: Literal["nothing"] = "nothing"


class Aux(NamedTuple):
    scalars: dict
    batch_stats: dict


def build_objective(config: ObjectiveConfig, model: Network, num_steps: int):
    def loss(params, batch_stats, batch, key, step):
        value = params["kernel"].mean() * batch["image"].mean()
        # as many scalars as training logs
        return value, Aux({f"part{number}": value + number for number in range(8)}, {})

    return loss


def register() -> None:
    modules = {
        "network": types.SimpleNamespace(
            Config=NothingConfig,
            build=lambda config, dtype=None, frozen=(): Network(config),
            INPUT=InputSpec(),
        ),
        "objective": types.SimpleNamespace(Config=ObjectiveConfig, build=build_objective),
    }
    for kind, module in modules.items():
        sys.modules[f"nothing_{kind}"] = module
        registry.MODULES[kind]["nothing"] = f"nothing_{kind}"


class Times:
    """When things happen in a run, recorded without affecting it.

    Attributes:
        steps: when each batch was requested, seconds.
        saves: (start of `save`, end of writing in the background), seconds.
        holding: how long each call of `save` took, seconds.
        bar: seconds in the progress bar's methods.
        processor: seconds of all threads, after the first steps.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.saves: list[tuple[float, float]] = []
        self.holding: list[float] = []
        self.bar = 0.0
        self.processor = 0.0

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        following, save, check = (
            pipeline.TrainIterator.__next__,
            Checkpointer.save,
            Checkpointer.check,
        )
        methods = {
            name: getattr(tqdm, name) for name in ("update", "set_postfix", "set_description")
        }
        started: list[float] = []

        def timed_next(iterator):
            self.steps.append(time.perf_counter())
            if len(self.steps) == _FIRST:
                self.processor = -time.process_time()
            return following(iterator)

        def timed_save(checkpointer, *arguments):
            started.append(time.perf_counter())
            save(checkpointer, *arguments)
            self.holding.append(time.perf_counter() - started[-1])

        def timed_check(checkpointer):
            if started and not checkpointer._manager.is_saving_in_progress():
                self.saves.append((started.pop(), time.perf_counter()))
            check(checkpointer)

        def timed(method):
            def call(bar, *arguments, **options):
                start = time.perf_counter()
                method(bar, *arguments, **options)
                self.bar += time.perf_counter() - start

            return call

        pipeline.TrainIterator.__next__ = timed_next
        Checkpointer.save, Checkpointer.check = timed_save, timed_check
        for name, method in methods.items():
            setattr(tqdm, name, timed(method))
        try:
            yield
        finally:
            self.processor += time.process_time()
            pipeline.TrainIterator.__next__ = following
            Checkpointer.save, Checkpointer.check = save, check
            for name, method in methods.items():
                setattr(tqdm, name, method)


def run(steps: int, parameters: int, save_every: int) -> Times:
    """Trains; leaves out the first steps, in which everything is compiled and read."""
    source = {"name": "kitti", "root": str(SAMPLE / "raw"), "depth_root": str(SAMPLE / "depth")}
    source |= {"depth": "dense"}
    plain = {"rotation": 0.0, "jitter": 0.0, "scale": (1.0, 1.0)}  # no costly arithmetic
    mapping = {
        "num_steps": steps + _FIRST,
        "batch_size": 2,
        "model": {"name": "nothing", "parameters": parameters},
        "objective": {"name": "nothing"},
        "data": {
            "train": {
                "source": source | {"split": "train"},
                "augmentation": {"name": "kitti", "crop": (48, 96), "flip": 0.5} | plain,
                "cache": True,
            },
            "evaluation": source | {"split": "val"},
        },
        "evaluation": {"protocol": "dense"},
        "checkpoint": {"every_steps": save_every},
        "logging": {"every_steps": 20},
    }
    times = Times()
    with tempfile.TemporaryDirectory() as workdir, times.noted():
        loop.train(experiment.from_mapping(mapping), Path(workdir))
    times.steps = times.steps[_FIRST:]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    register()

    times = run(steps, parameters=1000, save_every=500)
    seconds = times.steps[-1] - times.steps[0]
    rows = [
        ("steps per second", (len(times.steps) - 1) / seconds),
        ("processor time per step, ms", 1e3 * times.processor / len(times.steps)),
        ("share of the progress bar, %", 100 * times.bar / seconds),
    ]

    times = run(400, parameters=50_000_000 // 12, save_every=100)
    durations = [b - a for a, b in zip(times.steps, times.steps[1:], strict=False)]
    saving = [
        any(begin <= start + duration and start <= end for begin, end in times.saves)
        for start, duration in zip(times.steps, durations, strict=False)
    ]
    during = [duration for duration, saved in zip(durations, saving, strict=True) if saved]
    others = [duration for duration, saved in zip(durations, saving, strict=True) if not saved]
    rows += [
        ("loop blocked by a save of 50 MB, ms", 1e3 * statistics.median(times.holding)),
        (
            "time until that save is written, ms",
            1e3 * max(end - begin for begin, end in times.saves),
        ),
        ("median step while it is being written, ms", 1e3 * statistics.median(during)),
        ("longest step while it is being written, ms", 1e3 * max(during)),
        ("median step otherwise, ms", 1e3 * statistics.median(others)),
        ("longest step otherwise, ms", 1e3 * max(others)),
    ]
    facts = [harness.device_and_load(), harness.versions("jax")]
    harness.print_rows([name, f"{value:.3g}", *facts] for name, value in rows)


if __name__ == "__main__":
    main()
