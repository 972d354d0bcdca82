"""Seconds per image of generate_adverse.py, against a plain loop around diffusers.

    .venv-torch/bin/python benchmarks/adverse.py [--images=12] [--steps=50] >> results/adverse.csv

Both make the same images at the same time, each in a process with one thread, so that other work on
the machine affects both: frames of KITTI's size through a tiny Stable Diffusion with a T2I-Adapter,
at the usual size and number of steps. An image takes a few seconds, about as long as with real
networks on a GPU. The plain loop only reads depth, makes the control image, calls the pipeline,
resizes the result and writes it as PNG. Seconds are processor time of all processes (Linux only)
from the first finished image to the last, so a busy machine matters little; anything before the
first image is left out.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import harness
import numpy as np
from PIL import Image

sys.path[:0] = [str(harness.PROJECT)]
SIZE, GENERATED = (375, 1242), (256, 832)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop is not None:
        plain_loop(options.loop, options.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder)
        write_frames(folder / "frames", options.images)
        loop = subprocess.Popen(
            [sys.executable, __file__, f"--loop={folder}", f"--steps={options.steps}"],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        loop.stdout.readline()  # ready
        ours = run(folder, options)
        plain = float(loop.stdout.readline() or "nan")
        if loop.wait() != 0:
            raise SystemExit("the plain loop has failed")
    harness.print_rows(
        [
            [
                "t2i_adapter, tiny networks, 1 thread",
                "x".join(map(str, SIZE)),
                "x".join(map(str, GENERATED)),
                options.steps,
                options.images,
                f"{plain:.3f}",
                f"{ours:.3f}",
                f"{ours / plain:.3f}",
                harness.commit(),
                harness.device_and_load(),
                harness.versions("torch", "diffusers", "jax"),
            ]
        ]
    )


def write_models(folder: Path) -> None:
    from tests.adverse import tiny_models

    with open(os.devnull, "w") as nowhere:
        stderr, sys.stderr = sys.stderr, nowhere
        tiny_models.write_base(folder / "base", "sd", tokens=400)
        tiny_models.write_adapter(folder / "adapter", "sd")
        sys.stderr = stderr


def write_frames(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for part in ("image", "depth"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        image = Image.fromarray(rng.integers(0, 256, (24, 78, 3), dtype=np.uint8))
        image.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(folder / "image" / f"{index}.png")
        depth = Image.fromarray(rng.uniform(4, 60, (12, 40)).astype(np.float32))
        depth = np.asarray(depth.resize(SIZE[::-1], Image.Resampling.BILINEAR))
        np.save(folder / "depth" / f"{index}.npy", depth)


def plain_loop(folder: Path, steps: int) -> None:
    import torch
    from diffusers import DDIMScheduler, StableDiffusionAdapterPipeline, T2IAdapter

    torch.set_num_threads(1)
    pipeline = StableDiffusionAdapterPipeline.from_pretrained(
        folder / "base",
        adapter=T2IAdapter.from_pretrained(folder / "adapter"),
        safety_checker=None,
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    (folder / "loop").mkdir()
    print("ready", flush=True)
    while not (folder / "run" / "images").exists():
        time.sleep(0.01)
    paths = sorted((folder / "frames" / "depth").iterdir())
    for index, path in enumerate(paths):
        inverse = 1 / np.load(path)
        inverse -= inverse.min()
        levels = np.repeat((255 * inverse / inverse.max()).astype(np.uint8)[..., None], 3, axis=2)
        control = Image.fromarray(levels).resize(GENERATED[::-1], Image.Resampling.LANCZOS)
        (image,) = pipeline(
            prompt=["a street at night"],
            negative_prompt=["daylight"],
            image=[control],
            height=GENERATED[0],
            width=GENERATED[1],
            num_inference_steps=steps,
            generator=torch.Generator("cpu").manual_seed(index),
        ).images
        image.resize(SIZE[::-1], Image.Resampling.LANCZOS).save(folder / "loop" / f"{index}.png")
        if index == 0:
            start = time.process_time()
    print((time.process_time() - start) / (len(paths) - 1), flush=True)


def run(folder: Path, options: argparse.Namespace) -> float:
    """Processor seconds per image, of this process and the worker."""
    from diffdepth_jax.adverse import config, runner

    seconds: list[float] = []

    def watch() -> None:
        for count in (1, options.images):
            while len(list((folder / "run" / "images" / "night").glob("*.png"))) < count:
                time.sleep(0.02)
            seconds.append(time.process_time() + children_seconds())

    watcher = threading.Thread(target=watch)
    watcher.start()
    runner.run(
        config.from_mapping(
            {
                "source": {"name": "folder", "root": str(folder / "frames")},
                "labels": "source",
                "conditions": ("night",),
                "backend": {
                    "name": "diffusers",
                    "base": str(folder / "base"),
                    "control": str(folder / "adapter"),
                    "num_inference_steps": options.steps,
                    "threads": 1,
                },
            }
        ),
        folder / "run",
        python=sys.executable,
        progress=False,
    )
    watcher.join()
    return (seconds[1] - seconds[0]) / (options.images - 1)


def children_seconds() -> float:
    """Processor seconds of this process's running children, including the worker."""
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            if "--loop=" not in Path(f"/proc/{child}/cmdline").read_text():
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
