"""Processor milliseconds per image of the backend `physical`, by condition and size.

    python benchmarks/physical.py >> results/physical.csv

Images are random, with a street's depth; reading and writing are left out. Medians of five.
"""

import os
import statistics
import time

import harness
import numpy as np

from diffdepth_jax.adverse import image_formation

SIZES = ((64, 208), (375, 1242), (900, 1600))


def main() -> None:
    commit = harness.commit()
    for size in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        down = (np.arange(size[0]) - size[0] / 2)[:, None] / size[1]
        depth = np.broadcast_to(np.minimum(1.5 / np.maximum(down, 1e-3), 60.0), size).copy()
        depth[: size[0] // 4] = 0  # the sky
        scene = image_formation.scene(image, depth)
        for condition in image_formation.CONDITIONS:
            times = []
            for seed in range(5):
                start = time.process_time()
                image_formation.render(condition, scene, seed)
                times.append(1000 * (time.process_time() - start))
            row = [condition, f"{size[0]}x{size[1]}", f"{statistics.median(times):.0f}", commit]
            harness.print_rows([[*row, f"1 CPU core (load {os.getloadavg()[0]:.1f})"]])


if __name__ == "__main__":
    main()
