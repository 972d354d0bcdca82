"""Render street scenes with exact and lidar-like depth, in KITTI's official folder layout.

    python tools/render_scenes.py --kind=street --count=200 --split=train --size=96x320 --seed=1 \
        --output=DIR
    python tools/render_scenes.py --preset=sample --output=sample    # the committed one

Needs the optional extra `render` (Mitsuba 3). Every frame is another layout, and splits share none.
Frames depend on kind, size, samples, seed, split and number alone, to the byte (with the tested
versions of mitsuba and pillow); finished ones are skipped, so an interrupted run goes on, and a
higher --count adds frames. The `kitti` source reads the result with root=DIR/raw and
depth_root=DIR/depth.
"""

import argparse
import json
import multiprocessing
import os
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image
from tqdm import tqdm

from diffdepth_jax.scenes import layouts, lidar, writers

SPLITS = ("train", "val", "test")
# KITTI has one camera calibration a date. Made-up dates; focal length over the picture's width.
CAMERAS = {"2000_01_01": 0.52, "2000_01_02": 0.58, "2000_01_03": 0.65, "2000_01_04": 0.73}
PRESETS = {
    "sample": {
        "kind": "street", "size": (80, 256), "samples": 16, "seed": 1,
        "counts": {"train": 80, "val": 24},
    }
}  # fmt: skip


class Task(NamedTuple):
    """One frame to render."""

    root: Path
    split: str
    index: int
    size: tuple[int, int]
    samples: int
    seed: int

    @property
    def frame(self) -> writers.KittiFrame:
        dates = list(CAMERAS)
        drive = 1 + 3000 * SPLITS.index(self.split) + self.index
        return writers.KittiFrame(self.root, self.split, dates[self.index % len(dates)], drive)


def render_task(task: Task) -> None:
    """Render one frame and write its files."""
    from diffdepth_jax.scenes import render  # here, as only working processes need mitsuba

    sequence = np.random.SeedSequence([task.seed, SPLITS.index(task.split), task.index])
    for_layout, for_light, for_lidar = sequence.spawn(3)
    frame = task.frame
    layout = layouts.street(np.random.default_rng(for_layout), task.size, CAMERAS[frame.date])
    seed = int(for_light.generate_state(1)[0])
    image, dense = render.render(layout, samples=task.samples, seed=seed)
    camera = layout.camera
    sparse = lidar.scan(dense, camera.intrinsics, camera.mount, np.random.default_rng(for_lidar))
    writers.write_frame(frame, image, dense, sparse, camera.intrinsics)


def contact_sheet(tasks: list[Task]) -> Image.Image:
    """Pictures beside their dense depth and their lidar points, coloured near to far."""
    colours = matplotlib.colormaps["turbo_r"]

    def coloured(depth: np.ndarray) -> np.ndarray:
        nearness = np.log(np.clip(depth, 2, 80) / 2) / np.log(40)
        return (colours(nearness)[..., :3] * 255 * (depth > 0)[..., None]).astype(np.uint8)

    tiles = []
    for task in tasks:
        image = np.asarray(Image.open(task.frame.image))
        dense, sparse = (
            np.asarray(Image.open(task.frame.depth(kind))) / writers.DEPTH_SCALE
            for kind in ("dense", "groundtruth")
        )
        overlay = np.where((sparse > 0)[..., None], coloured(sparse), image // 3)
        tiles.append(np.concatenate([image, coloured(dense), overlay], axis=1))
    height, width = tiles[0].shape[:2]
    columns = max(round((len(tiles) * height / width) ** 0.5), 1)
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return Image.fromarray(np.concatenate(rows))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(map(int, match.groups())) < 8:
        raise argparse.ArgumentTypeError(f"{text!r} is no HEIGHTxWIDTH of 8 or more, e.g. 96x320")
    return int(match[1]), int(match[2])


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _claim(root: Path, options: dict) -> None:
    """Note the options in `root`, or refuse where other ones were used before."""
    note = root / "render.json"
    text = json.dumps(options, indent=2) + "\n"
    if not note.exists():
        root.mkdir(parents=True, exist_ok=True)
        note.write_text(text)
    elif note.read_text() != text:
        raise SystemExit(
            f"{root} holds frames rendered with other options ({note}). "
            "Use those options, or another --output."
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, help="a fixed set; replaces the next six")
    parser.add_argument("--kind", choices=("street",), default="street")
    parser.add_argument("--count", type=_positive, default=16, help="frames of the split")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--size", type=_size, default=(96, 320), help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--samples", type=_positive, default=16, help="light paths a pixel")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--processes", type=_positive, default=os.cpu_count())
    parser.add_argument("--contact_sheet", type=Path, help="also draw all frames into this PNG")
    flags = parser.parse_args()
    own = {name: getattr(flags, name) for name in ("kind", "size", "samples", "seed")}
    preset = PRESETS.get(flags.preset, own | {"counts": {flags.split: flags.count}})

    options = {name: preset[name] for name in ("kind", "size", "samples", "seed")}
    _claim(flags.output, options)
    tasks = [
        Task(flags.output, split, index, preset["size"], preset["samples"], preset["seed"])
        for split, count in preset["counts"].items()
        for index in range(count)
    ]
    missing = [task for task in tasks if not task.frame.image.exists()]
    # Processes begin afresh: a forked copy of a started renderer would hang.
    with multiprocessing.get_context("spawn").Pool(flags.processes) as pool:
        work = pool.imap_unordered(render_task, missing)
        for _ in tqdm(work, total=len(tasks), initial=len(tasks) - len(missing), unit="frame"):
            pass
    if flags.contact_sheet:
        contact_sheet(tasks).save(flags.contact_sheet)


if __name__ == "__main__":
    main()
