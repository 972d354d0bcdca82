"""Images per second of several ways to prepare training data, in one run.

    python benchmarks/data.py [--frames=32] [--images=96]

Writes KITTI-sized frames (375x1242, lidar-like depth) as KITTI's files and as ArrayRecord (with
`tools/prepare_data.py`'s writer), and prepares batches of 8 with the augmentation of
`configs/kitti.py` (352x906): with the pipeline from either format, using threads or worker
processes; and with a plain loop over the files in one process, like a PyTorch `DataLoader` with
`num_workers=0`, with the same reading and transforms (PyTorch is not needed). Prints rows for
results/throughput.csv: what, how many threads or processes, the number (images per second unless
stated otherwise) and its ratio to the plain loop. Files are in the disk cache. Other work on the
machine distorts the rates, and the CPU milliseconds less.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
from PIL import Image

from diffdepth_jax.data import pipeline
from diffdepth_jax.data.sources import kitti, tfds
from diffdepth_jax.data.transforms import Augmentation, augment
from diffdepth_jax.typing import InputSpec

SIZE = (375, 1242)
BATCH = 8
WINDOW = 4  # batches
DRIVE = "2011_09_26_drive_0001_sync"


def write_frames(root: Path, count: int) -> kitti.Config:
    """Frames as smooth and as noisy as photographs, with depth at one pixel in six."""
    for number in range(count):
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(0, 256, (47, 156, 3), np.uint8))
        smooth = np.asarray(small.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(int)
        image = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
        depth = rng.integers(256, 20000, SIZE) * (rng.uniform(size=SIZE) < 1 / 6)
        folder = root / DRIVE[:10] / DRIVE / "image_02" / "data"
        depths = root / "train" / DRIVE / "proj_depth" / "groundtruth" / "image_02"
        for place, array in ((folder, image), (depths, depth.astype(np.uint16))):
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(place / f"{number:010d}.png")
    (root / DRIVE[:10] / "calib_cam_to_cam.txt").write_text(
        "P_rect_02: 7.2e+02 0 6.1e+02 4.5e+01 0 7.2e+02 1.7e+02 2.2e-01 0 0 1 2.7e-03\n"
    )
    return kitti.Config(root=str(root), cameras=("image_02",))


def plain_loop(config: kitti.Config) -> Iterator[dict[str, Any]]:
    """One file at a time in one process; yields batches like `train_iterator`."""
    source, spec, rng = pipeline.build_source(config), InputSpec(), np.random.default_rng(0)
    while True:
        order = rng.permutation(len(source))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            samples = []
            for index in order[start : start + BATCH]:
                sample = augment(source[index], Augmentation(), rng)
                depth = sample["depth"][:, :, None]
                samples.append(
                    {
                        "image": spec.normalise(sample["image"]),
                        "depth": depth,
                        "valid_mask": depth > 0,
                        "intrinsics": sample["intrinsics"],
                    }
                )
            yield {name: np.stack([each[name] for each in samples]) for name in samples[0]}


def measure(batches: Iterator[Any], images: int) -> float:
    """Images per second of the fastest four successive batches: other work can only slow down."""
    next(batches)
    times = [time.perf_counter()]
    for _ in range(images // BATCH):
        next(batches)
        times.append(time.perf_counter())
    return WINDOW * BATCH / min(np.subtract(times[WINDOW:], times[:-WINDOW]))


def milliseconds(source: Any, images: int) -> list[tuple[str, float]]:
    """CPU milliseconds per image in one thread, for reading, augmenting and normalising."""
    rng, spec, spent = np.random.default_rng(0), InputSpec(), np.zeros(3)
    for index in range(images):
        times = [time.thread_time()]
        sample = source[index % len(source)]
        times.append(time.thread_time())
        sample = augment(sample, Augmentation(), rng)
        times.append(time.thread_time())
        spec.normalise(sample["image"])
        times.append(time.thread_time())
        spent += np.diff(times)
    names = ("read", "augment", "normalise")
    return [(name, 1e3 * float(value) / images) for name, value in zip(names, spent, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--images", type=int, default=96)
    flags = parser.parse_args()
    if flags.images < WINDOW * BATCH or flags.frames < BATCH:
        parser.error(f"at least {WINDOW * BATCH} images and {BATCH} frames are needed")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = write_frames(root / "kitti", flags.frames)
        source = kitti.build(files)
        start = time.perf_counter()
        target = tfds.directory(root, "kitti", "train")
        tfds.write(source, target, "train", {}, num_threads=1)
        rows.append(
            ("write ArrayRecord", "1 thread", flags.frames / (time.perf_counter() - start), "")
        )
        records = tfds.Config(root=str(root), dataset="kitti", split="train")
        for name, opened in (("files", source), ("ArrayRecord", tfds.build(records))):
            opened[0]
            for stage, value in milliseconds(opened, flags.frames):
                rows.append((f"{name}: {stage}, CPU ms per image", "1 thread", value, ""))
        rows.append(
            ("plain loop over files", "1 process", measure(plain_loop(files), flags.images), 1)
        )
        base = rows[-1][2]
        for name, config in (("files", files), ("ArrayRecord", records)):
            for workers, threads in ((0, 1), (0, 2), (1, 1), (2, 1)):
                data = pipeline.DataConfig(source=config, num_workers=workers, num_threads=threads)
                with_ = f"{workers} workers" if workers else f"{threads} threads"
                iterator = pipeline.train_iterator(data, BATCH, 0, InputSpec())
                speed = measure(iterator, flags.images)
                iterator.close()
                rows.append((f"pipeline from {name}", with_, speed, speed / base))
    facts = [harness.commit(), harness.device_and_load()]
    facts.append(harness.versions("pillow", "numpy", "grain"))
    harness.print_rows(
        [name, with_, f"{value:.1f}", f"{ratio:.2f}" if ratio else "", *facts]
        for name, with_, value, ratio in rows
    )


if __name__ == "__main__":
    main()
