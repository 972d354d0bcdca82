"""Images per second of `DepthModel.predict` and of `predict_files`, by batch size.

    python benchmarks/inference.py [--variant=res18] [--size=96x320] >> results/inference.csv

Weights are random. The batch sizes are timed in turn, several times; each row has the median images
per second and its ratio to the first batch size.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import jax
import numpy as np
from PIL import Image

from diffdepth_jax import inference
from diffdepth_jax.inference import files
from diffdepth_jax.models.networks import diffusion_depth


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="res18")
    parser.add_argument("--size", default="96x320")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch_sizes", default="1,2,4,8")
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    height, width = map(int, flags.size.split("x"))
    batch_sizes = list(map(int, flags.batch_sizes.split(",")))

    config = diffusion_depth.VARIANTS[flags.variant]
    network = diffusion_depth.build(config)
    variables = jax.jit(network.init_variables)(jax.random.key(0))
    model = inference.DepthModel(network, variables, config)
    shape = (flags.images, height, width, 3)
    images = list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{index:04}.png") for index in range(flags.images)]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path)
        ways: dict[tuple[str, int], Callable[[], object]] = {}
        for size in batch_sizes:
            ways["predict", size] = lambda size=size: model.predict(images, batch_size=size)
            ways["predict with flip_tta", size] = lambda size=size: model.predict(
                images, batch_size=size, flip_tta=True
            )
            ways["files", size] = lambda size=size: files.predict_files(
                model, paths, Path(folder, "out"), batch_size=size
            )
        for way in ways.values():  # compiles
            way()
        times: dict[tuple[str, int], list[float]] = {key: [] for key in ways}
        for _ in range(flags.rounds):
            for key, way in ways.items():
                times[key].append(seconds(way))

    facts = [harness.commit(), harness.device_and_load(), harness.versions("jax")]
    medians = {key: statistics.median(each) for key, each in times.items()}
    for (what, size), median in medians.items():
        ratio = medians[what, batch_sizes[0]] / median
        rate = flags.images / median
        row = [what, flags.variant, flags.size, size, f"{rate:.2f}", f"{ratio:.2f}"]
        harness.print_rows([[*row, *facts]])


if __name__ == "__main__":
    main()
