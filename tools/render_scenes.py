r"""Renders scenes with exact and lidar-like depth, under any conditions, in official layouts.

    python tools/render_scenes.py --kind=street --count=200 --split=train --size=96x320 --seed=1 \
        --conditions=clear,night,fog,rain,snow,glare --output=DIR
    python tools/render_scenes.py --kind=tabletop --count=200 --split=train --size=144x192 \
        --conditions=clear,transparent,mirror --layout=nyu --output=DIR
    python tools/render_scenes.py --preset=sample --output=DIR  # the content of sample/, and of
    python tools/render_scenes.py --preset=sample_adverse --conditions=night,... --output=DIR

Needs the optional extra `render` (Mitsuba 3). Every frame has a different layout, and splits share
none. All conditions of a frame show the same scene from the same camera, so they have the same
exact depth. Frames only depend on kind, size, samples, seed, split and number, to the byte (with
the tested versions of mitsuba and pillow). Finished frames are skipped, so running the same command
resumes an interrupted run, a higher --count adds frames, and other --conditions add images.

Clear frames go to DIR, other conditions to DIR/CONDITION; `diffdepth_jax/scenes/writers.py`
describes both layouts. To read them, use the source `kitti` with root=DIR/raw or DIR/night/raw, and
depth_root=DIR/depth for both; or the source `nyu` with layout=sync and root=DIR or DIR/night. KITTI
has no split called test: use split=DIR/test.txt and depth_root=DIR/depth/test.

Pictures are PNG, or, with --image_format=jpg, JPEG with quality 90 and no chroma subsampling, which
is less than a third of the size; both sources read either. Depth and masks are always PNG.

Table-tops have no lidar: their depth is dense in both layouts. Each of their images has a mask with
the Booster benchmark's material classes: 3 glass, 2 mirror (both "ToM"), 1 glossy, 0 other. Both
sources read it, and the protocol `cleargrasp` uses it. They also read a frame's condition, which
evaluations are grouped by.

--lidar_failures also writes a scan with realistic failures, as KITTI's velodyne_raw: on glass and
wet ground, and in fog, rain and snow (source `kitti` with depth=velodyne_raw and
depth_root=DIR/CONDITION/depth, or DIR/depth for clear).
"""

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import zlib
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from diffdepth_jax import atomic, cli, ending, usage
from diffdepth_jax.data import io
from diffdepth_jax.errors import ConfigError, MissingPackageError, naming_file
from diffdepth_jax.scenes import kinds, lidar, writers

SPLITS = ("train", "val", "test")
_SAMPLE = {
    "kind": "street", "size": (64, 208), "samples": 16, "seed": 1,
    "layout": "kitti", "image_format": "jpg",
}  # fmt: skip
PRESETS = {
    "sample": _SAMPLE | {"counts": {"train": 240, "val": 60}},
    # Fewer streets for training, as these images are large.
    "sample_adverse": _SAMPLE | {"counts": {"train": 120, "val": 60}},
}
MOST = 3000  # scenes per split: KITTI's names have four digits
SHEET_FRAMES = 24  # only the first ones, as a sheet of hundreds is not readable


class Task(NamedTuple):
    """One scene to render, under all its conditions."""

    root: Path
    kind: str
    split: str
    index: int
    size: tuple[int, int]
    samples: int
    seed: int
    layout: str
    image_format: writers.ImageFormat
    failures: bool
    conditions: tuple[str, ...]

    @property
    def camera(self) -> int:
        return self.index % len(kinds.KINDS[self.kind].focals)

    @property
    def frame(self) -> writers.KittiFrame | writers.NyuFrame:
        number = 1 + MOST * SPLITS.index(self.split) + self.index
        if self.layout == "nyu":
            scene = f"{self.kind}_{number:04d}"
            return writers.NyuFrame(self.root, self.split, scene, image_format=self.image_format)
        date = f"2000_01_{self.camera + 1:02d}"  # made up, as KITTI has one calibration per date
        return writers.KittiFrame(
            self.root, self.split, date, number, image_format=self.image_format
        )

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.conditions if not self.frame.image(name).exists())


def render_task(task: Task) -> int:
    """Renders and writes what is missing of a scene; returns the number of images."""
    from diffdepth_jax.scenes import render  # imported here, as only worker processes need mitsuba

    kind, missing = kinds.KINDS[task.kind], task.missing
    if not missing:
        return 0
    sequence = np.random.SeedSequence([task.seed, SPLITS.index(task.split), task.index])
    for_layout, for_light, for_lidar, for_conditions = sequence.spawn(4)
    focal = kind.focals[task.camera]
    layout = kind.layout(np.random.default_rng(for_layout), task.size, focal)
    camera, seed = layout.camera, int(for_light.generate_state(1)[0])
    hits = render.first_hits(layout)
    sparse = hits.depth
    if kind.lidar:
        rng = np.random.default_rng(for_lidar)
        sparse = lidar.scan(hits.depth, camera.intrinsics, camera.mount, rng)
    for name in missing:
        own = np.random.SeedSequence([*for_conditions.generate_state(4), zlib.crc32(name.encode())])
        for_condition, for_scan = own.spawn(2)
        scene = kind.conditions[name](layout, np.random.default_rng(for_condition))
        scan = None
        if task.failures:
            medium = lidar.medium(scene, hits.surface, hits.behind)
            rng = np.random.default_rng(for_scan)
            scan = lidar.scan(hits.depth, camera.intrinsics, camera.mount, rng, medium=medium)
        picture = writers.Picture(
            image=render.render(scene, samples=task.samples, seed=seed, hits=hits),
            dense=hits.depth,
            sparse=sparse,
            scan=scan,
            category=None if kind.categories is None else kind.categories(scene, hits.surface),
            intrinsics=camera.intrinsics,
            weather=dataclasses.asdict(scene.weather),
        )
        task.frame.write(name, picture)
    return len(missing)


def contact_sheet(tasks: list[Task]) -> Image.Image:
    """A row per scene: its image under each condition, dense depth, and lidar points."""
    colours = matplotlib.colormaps["turbo_r"]

    def coloured(depth: np.ndarray) -> np.ndarray:
        nearest, farthest = (2, 80) if tasks[0].kind == "street" else (0.4, 6)
        nearness = np.log(np.clip(depth, nearest, farthest) / nearest)
        colour = colours(nearness / np.log(farthest / nearest))[..., :3]
        return (colour * 255 * (depth > 0)[..., None]).astype(np.uint8)

    conditions = tasks[0].conditions
    scanned = tasks[0].layout == "kitti" and kinds.KINDS[tasks[0].kind].lidar
    names = [*conditions, "depth", *(["lidar"] if scanned else [])]
    height, width = tasks[0].size
    band = 14  # for the labels
    sheet = Image.new("RGB", (width * len(names), band + height * len(tasks)))
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        draw.text((column * width + 4, 1), name, fill=(255, 255, 255))
    for row, task in enumerate(tasks):
        frame = task.frame
        with_depth = [io.read_image(frame.image(name)) for name in conditions]
        depth = io.read_depth_png(frame.dense(conditions[0]), frame.SCALE)
        with_depth.append(coloured(depth))
        if scanned:
            sparse = io.read_depth_png(frame.depth("groundtruth"), frame.SCALE)
            points = np.where((sparse > 0)[..., None], coloured(sparse), with_depth[0] // 3)
            with_depth.append(points)
        for column, tile in enumerate(with_depth):
            sheet.paste(Image.fromarray(tile), (column * width, band + row * height))
    return sheet


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(map(int, match.groups())) < 8:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HEIGHTxWIDTH with both at least 8, for example 96x320"
        )
    return int(match[1]), int(match[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _claim(root: Path, options: dict) -> None:
    """Records the options in `root`, or raises an error if others were used before."""
    note = root / "render.json"
    text = json.dumps(options, indent=2) + "\n"
    if not note.exists():
        with naming_file(root, "written"):
            root.mkdir(parents=True, exist_ok=True)
        atomic.write_text(note, text)
    elif io.read_text(note) != text:
        raise ConfigError(
            f"{root} has frames rendered with other options ({note}). Use those options, or "
            "another --output."
        )
    atomic.remove_leftovers(root, recursive=True)


def main() -> None:
    parser = usage.argument_parser(__doc__)
    parser.add_argument(
        "--preset", choices=PRESETS, help="a predefined set; replaces the next eight flags"
    )
    parser.add_argument(
        "--kind", choices=tuple(kinds.KINDS), default="street", help="kind of scene"
    )
    parser.add_argument("--count", type=_positive, default=16, help="number of scenes in the split")
    parser.add_argument("--split", choices=SPLITS, default="train", help="split of the scenes")
    parser.add_argument("--size", type=_size, default=(96, 320), help="HEIGHTxWIDTH in pixels")
    parser.add_argument(
        "--samples", type=_positive, help="light paths per pixel; outdoors 4, 16, 64"
    )
    parser.add_argument("--seed", type=int, default=0, help="0 or more")
    parser.add_argument("--layout", choices=("kitti", "nyu"), default="kitti", help="folder layout")
    parser.add_argument(
        "--image_format", choices=("png", "jpg"), default="png", help="format of the images only"
    )
    parser.add_argument("--conditions", default="clear", help="comma-separated, or all")
    parser.add_argument("--lidar_failures", action="store_true", help="see --helpfull; kitti only")
    parser.add_argument("--output", required=True, help="the folder to write to")
    parser.add_argument(
        "--processes", type=_positive, default=os.cpu_count(), help="default: one per core"
    )
    parser.add_argument(
        "--contact_sheet", help=f"also write the first {SHEET_FRAMES} scenes to a PNG"
    )
    flags = parser.parse_args()
    chosen = ("kind", "size", "samples", "seed", "layout", "image_format")
    own = {name: getattr(flags, name) for name in chosen}
    own["samples"] = flags.samples or kinds.KINDS[flags.kind].samples
    preset = PRESETS.get(flags.preset, own | {"counts": {flags.split: flags.count}})
    known = kinds.KINDS[preset["kind"]].conditions
    words = known if flags.conditions == "all" else flags.conditions.split(",")
    conditions = tuple(dict.fromkeys(words))  # without duplicates
    if unknown := [name for name in conditions if name not in known]:
        parser.error(
            f"--conditions: {preset['kind']} has no {unknown[0]!r}; choose from {', '.join(known)}"
        )
    if preset["kind"] == "street" and preset["samples"] not in (1, 4, 16, 64, 256):
        parser.error(f"--samples is {flags.samples}; for streets it must be 1, 4, 16, 64 or 256")
    if flags.count > MOST:
        parser.error(f"--count is {flags.count}; a split has at most {MOST} scenes")
    if flags.seed < 0:
        parser.error(f"--seed is {flags.seed}; it must be 0 or more")
    if flags.lidar_failures and (
        preset["layout"] != "kitti" or not kinds.KINDS[preset["kind"]].lidar
    ):
        parser.error("--lidar_failures needs --kind=street and --layout=kitti: there is no lidar")
    output = cli.directory("--output", flags.output)
    sheet = None
    if flags.contact_sheet is not None:
        sheet = cli.output_file("--contact_sheet", flags.contact_sheet)
    if importlib.util.find_spec("mitsuba") is None:
        raise MissingPackageError(
            "rendering needs the package mitsuba: pip install 'diffdepth_jax[render]'"
        )

    options = {name: preset[name] for name in chosen} | {"failures": flags.lidar_failures}
    _claim(output, options)
    tasks = [
        Task(
            root=output, split=split, index=index, conditions=conditions, **options
        )
        for split, count in preset["counts"].items()
        for index in range(count)
    ]  # fmt: skip
    missing = [task for task in tasks if task.missing]
    total, open_pictures = len(tasks) * len(conditions), sum(len(task.missing) for task in missing)
    # Processes are spawned, as a forked copy of a running renderer would hang. They inherit that
    # Ctrl-C is ignored, and end with this process, which restores it immediately.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with (
        multiprocessing.get_context("spawn").Pool(flags.processes) as pool,
        tqdm(total=total, initial=total - open_pictures, unit="frame") as bar,
    ):
        signal.signal(signal.SIGINT, on_interrupt)
        for pictures in pool.imap_unordered(render_task, missing):
            bar.update(pictures)
    for split in preset["counts"]:
        frames = [task.frame for task in tasks if task.split == split]
        if preset["layout"] == "nyu":
            for condition in conditions:
                writers.write_list(output, condition, split, frames)
        elif split == "test":
            writers.write_kitti_list(output, split, frames)
    if sheet:
        picture = contact_sheet(tasks[:SHEET_FRAMES])
        atomic.write(sheet, lambda file: picture.save(file, format="PNG"))


if __name__ == "__main__":
    with ending.one_line_errors():
        try:
            main()
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted: run the same command to resume") from None
