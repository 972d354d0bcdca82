"""The cost of a distillation step against a plain step of the same network.

    python benchmarks/distillation.py [--rounds=8] [--steps=10]

Trains the network of `configs/demo_regression.py` in four ways, in one process, taking turns of a
few steps each, data included: on the depth of clean images (plain); on the same depth as stored
labels of pairs, with the objectives `metric` and `ssi`, a quarter of the images clean; and on
labels that a teacher computes during training. Frames are kept in memory after their first use, as
in that config. Prints rows for results/distillation.csv: the median wall-clock time of a step, its
processor time over all threads, which other work on the machine disturbs less, and for both the
median ratio to the plain step of the same turn.
"""

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import harness
import jax
import numpy as np
from PIL import Image

from diffdepth_jax import config as config_lib
from diffdepth_jax import registry
from diffdepth_jax.data import pipeline
from diffdepth_jax.data.sources.adverse import MANIFEST_FILE
from diffdepth_jax.training import experiment, optimizer, sharding
from diffdepth_jax.training import state as state_lib
from diffdepth_jax.training import step as step_lib
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.experiment import Experiment
from diffdepth_jax.training.teacher import Teacher

FRAMES = 48  # from the sample
_FIRST = 13  # steps in which everything is compiled and every frame is read


def demo_mapping() -> dict[str, Any]:
    """The experiment of `configs/demo_regression.py`."""
    path = harness.PROJECT / "configs" / "demo_regression.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    mapping = module.get_config().to_dict()
    sample = {
        "root": str(harness.PROJECT / "sample/raw"),
        "depth_root": str(harness.PROJECT / "sample/depth"),
    }
    mapping["data"]["train"]["source"] |= sample
    mapping["data"]["evaluation"] |= sample
    return mapping


def write_pairs(root: Path, source: Any) -> None:
    """A workdir of pairs: the source's frames, darkened, with their own depth as labels."""
    rows = []
    for folder in ("images/night", "clean", "labels"):
        (root / folder).mkdir(parents=True)
    frames = pipeline.evaluation_samples(source, FRAMES)
    for index in range(len(frames)):
        sample = frames[index]
        name = sample["id"]
        paths = {"image": f"images/night/{name}_0.png", "clean": f"clean/{name}.png"}
        Image.fromarray(sample["image"] // 3).save(root / paths["image"])
        Image.fromarray(sample["image"]).save(root / paths["clean"])
        np.save(root / f"labels/{name}.npy", sample["depth"])
        row = {"id": name, "condition": "night", "variant": 0, "status": "ok", "intrinsics": None}
        row |= {"label": f"labels/{name}.npy", "label_is": "metric_depth"}
        rows.append(json.dumps(row | paths))
    (root / MANIFEST_FILE).write_text("\n".join(rows) + "\n")


def write_teacher(workdir: Path, exp: Experiment) -> None:
    """A run of the experiment's network with initial weights."""
    model = registry.module("network", exp.model.name).build(exp.model)
    variables = jax.jit(model.init_variables)(jax.random.key(1))
    state = state_lib.create(variables, optimizer.build(exp.optimizer, lambda step: 0.0))
    with Checkpointer(workdir, keep=1) as checkpointer:
        checkpointer.save(1, state, config_lib.to_mapping(exp), b"{}", {})


def stepper(exp: Experiment) -> Callable[[], None]:
    """A function that takes the next batch and does a step, as training does."""
    mesh = sharding.make_mesh(exp.mesh, jax.devices()[:1])
    iterator = pipeline.train_iterator(
        exp.data.train,
        exp.batch_size,
        exp.seed,
        exp.model.input_spec,
        clean_images=exp.labels_online,
    )
    teacher = Teacher(exp.teacher, exp.model, mesh) if exp.labels_online else None
    training_step = step_lib.build(exp, mesh)
    step = training_step.compiled()
    state, number = training_step.initial_state(jax.random.key(0), {}), 0

    def take() -> None:
        nonlocal state, number
        number += 1
        batch = dict(next(iterator))
        del batch["id"]
        if teacher:
            batch = teacher.label(batch, number)
        state, scalars = step(state, batch, jax.random.key(0))
        jax.block_until_ready(scalars)

    return take


def ways(mapping: Mapping[str, Any], folder: Path) -> dict[str, Experiment]:
    """The experiments by name, the plain one first. All see the same frames."""
    demo = experiment.from_mapping(mapping)
    write_pairs(folder / "pairs", demo.data.train.source)
    write_teacher(folder / "teacher", demo)

    def on(source: Mapping[str, Any], share: float, **changes: Any) -> Experiment:
        train = mapping["data"]["train"] | {"source": source, "clean_share": share}
        changes["data"] = mapping["data"] | {"train": train}
        return experiment.from_mapping(mapping | changes)

    root = {"root": str(folder / "pairs")}
    clean = root | {"name": "folder", "images": "clean/*.png", "depths": "labels/*.npy"}
    pairs = root | {"name": "adverse"}
    metric = {"name": "metric", "l1": 1.0, "silog": 1.0, "max_depth": 80.0}
    teacher = {"checkpoint": str(folder / "teacher")}
    return {
        "plain": on(clean, 0.0),
        "stored labels, metric": on(pairs, 0.25, objective=metric),
        "stored labels, ssi": on(pairs, 0.25, objective={"name": "ssi"}),
        "labels in training, metric": on(pairs, 0.25, objective=metric, teacher=teacher),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    clock: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        takes = {name: stepper(exp) for name, exp in ways(demo_mapping(), Path(folder)).items()}
        for take in takes.values():
            for _ in range(_FIRST):
                take()
        for _ in range(arguments.rounds):
            for name, take in takes.items():
                started = time.perf_counter(), time.process_time()
                for _ in range(arguments.steps):
                    take()
                ended = time.perf_counter(), time.process_time()
                for times, start, end in zip((clock, processor), started, ended, strict=True):
                    times.setdefault(name, []).append((end - start) / arguments.steps)
    facts = [harness.device_and_load(), harness.versions("jax")]
    for name in takes:
        seconds = [statistics.median(times[name]) for times in (clock, processor)]
        ratios = [
            statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=True))
            for times in (clock, processor)
        ]
        figures = (f"{value:.3f}" for value in (*seconds, *ratios))
        harness.print_rows([[name, *figures, *facts]])


if __name__ == "__main__":
    main()
