"""Inspects a data set on disk: statistics, errors, and a contact sheet of images and depth.

    python tools/inspect_data.py kitti --root=KITTI --split=val --output=sheet.png
    python tools/inspect_data.py nyu --root=NYU --split=test --layout=mat --limit=0

NAME is a source (a file in diffdepth_jax/data/sources, which describes its layout); every field of
its `Config` is an option, such as `--layout` above. Values are parsed as Python if possible
(`--cameras="['image_02']"`), otherwise as text.

Reads `--limit` frames, spread evenly over the split, and prints their sizes, depths, fraction of
pixels with depth, intrinsics and conditions. Missing or broken frames are listed and are not fatal;
the exit status is then 1 (2 for invalid flags). In the sheet, depth is coloured from near (bright)
to far (dark) on a separate scale per frame, grey where there is none; sparse depth is drawn with
larger points.
"""

import collections
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from diffdepth_jax import atomic, cli, ending, registry, usage, visualize
from diffdepth_jax.config import chosen
from diffdepth_jax.data.sources import Sample, Source
from diffdepth_jax.errors import DataError, FileError, MissingFileError

PANEL = 420  # width of an image in the sheet, pixels
CAPTION = 14  # height of its caption, pixels
LISTED = 20  # maximum number of frames, and of errors, to print individually


@dataclasses.dataclass(frozen=True)
class Figures:
    """Statistics of a frame; depths in metres, over the pixels with depth.

    A relative disparity label is in `others`; depth, its inverse, then has no unit.
    """

    id: str
    size: tuple[int, int]
    condition: str
    valid: float
    depths: tuple[float, float, float] | None  # minimum, median, maximum
    focal: tuple[float, float] | None
    others: dict[str, str]

    @classmethod
    def of(cls, sample: Sample) -> "Figures":
        depth, intrinsics = sample["depth"], sample["intrinsics"]
        label = sample.get("relative_disparity")
        known = depth[depth > 0] if label is None else label[np.isfinite(label)]
        others = {}
        if "tom_mask" in sample:
            others["tom_mask"] = f"{sample['tom_mask'].mean():.1%}"
        if "baseline" in sample:
            others["baseline"] = f"{sample['baseline']:.4f} m"
        if "clean_image" in sample:
            others["clean_image"] = "yes"
        depths = (known.min(), np.median(known), known.max()) if known.size else None
        if label is not None:
            values = "all unknown" if depths is None else f"{depths[0]:.4g} to {depths[2]:.4g}"
            others["relative_disparity"], depths = values, None
        return cls(
            id=sample["id"],
            size=depth.shape,
            condition=sample["condition"],
            valid=known.size / depth.size,
            depths=depths,
            focal=None if np.isnan(intrinsics).any() else (intrinsics[0, 0], intrinsics[1, 1]),
            others=others,
        )

    def line(self) -> str:
        depths = "no depth"
        if self.depths:
            depths = "{:.2f} / {:.2f} / {:.2f} m".format(*self.depths)
        focal = "no intrinsics" if self.focal is None else "f {:.1f} {:.1f}".format(*self.focal)
        size = "x".join(map(str, self.size))
        words = [self.id, size, self.condition, f"valid {self.valid:.3%}", depths, focal]
        return "  ".join([*words, *(f"{name} {value}" for name, value in self.others.items())])


def open_source(name: str, options: dict[str, Any]) -> tuple[Source, str | None]:
    """The source, and its error about missing files (None if nothing is missing).

    Raises:
        ConfigError: if there is no such source or option.
        DataError, FileError: if it cannot be opened.
    """
    from diffdepth_jax.data import pipeline  # imports JAX, which --help does not need

    config = chosen("source", {"name": name, **options}, resolve=registry.module, path=name)
    try:
        return pipeline.build_source(config), None
    except MissingFileError as error:
        if not config.check_files:
            raise
        return pipeline.build_source(config, on_error="skip"), str(error)


def read(source: Source, limit: int) -> tuple[list[int], list[Figures], list[str]]:
    """Reads frames spread over the source; returns indices, statistics, and errors of unreadable
    ones.

    Args:
        source: any source.
        limit: at most this many frames; 0 for all.
    """
    count = min(limit or len(source), len(source))
    good, figures, errors = [], [], []
    for number in tqdm(range(count), unit="frame", disable=count <= LISTED):
        index = number * len(source) // count
        try:
            figures.append(Figures.of(source[index]))
            good.append(index)
        except (DataError, FileError) as error:
            errors.append(str(error))
    return good, figures, errors


def report(figures: Sequence[Figures]) -> list[str]:
    """Lines that describe all frames together, and each frame if there are few."""
    lines = [figure.line() for figure in figures] if len(figures) <= LISTED else []
    sizes = collections.Counter("x".join(map(str, figure.size)) for figure in figures)
    lines.append("sizes (height x width): " + _counted(sizes))
    lines.append("conditions: " + _counted(collections.Counter(f.condition for f in figures)))
    valid = np.array([figure.valid for figure in figures])
    lines.append(
        f"pixels with depth: mean {valid.mean():.3%}, from {valid.min():.3%} to {valid.max():.3%}"
    )
    if depths := [figure.depths for figure in figures if figure.depths]:
        low, middle, high = np.array(depths).T
        lines.append(
            f"depth: minimum {low.min():.3f} m, median of the frames' medians "
            f"{np.median(middle):.3f} m, maximum {high.max():.3f} m"
        )
    calibrated = sum(figure.focal is not None for figure in figures)
    lines.append(f"intrinsics: in {calibrated} of {len(figures)} frames")
    for name, count in collections.Counter(name for f in figures for name in f.others).items():
        lines.append(f"{name}: in {count} of {len(figures)} frames")
    return lines


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """A row per sample: image, depth, depth over the image, and its other fields."""
    rows = [_row(sample) for sample in samples]
    width, height = max(row.width for row in rows), sum(row.height for row in rows)
    sheet = Image.new("RGB", (width, height))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _row(sample: Sample) -> Image.Image:
    height, width = sample["depth"].shape
    size = (PANEL, max(round(PANEL * height / width), 1))
    image = np.asarray(Image.fromarray(sample["image"]).resize(size, Image.Resampling.LANCZOS))
    near = nearest(sample["depth"], size[::-1])
    depth = visualize.colour_depth(near)
    over = depth if is_sparse(sample["depth"]) else image // 2 + depth // 2
    panels = [image, depth, np.where((near > 0)[..., None], over, image)]
    if "clean_image" in sample:
        clean = Image.fromarray(sample["clean_image"])
        panels.append(np.asarray(clean.resize(size, Image.Resampling.LANCZOS)))
    if "tom_mask" in sample:
        mask = Image.fromarray(sample["tom_mask"]).resize(size, Image.Resampling.NEAREST)
        magenta = image // 2 + np.array([127, 0, 127], np.uint8)
        panels.append(np.where(np.asarray(mask)[..., None], magenta, image))
    row = Image.new("RGB", (PANEL * len(panels), size[1] + CAPTION))
    row.paste(Image.fromarray(np.concatenate(panels, axis=1)), (0, CAPTION))
    text = Figures.of(sample).line().encode("ascii", "replace").decode()
    ImageDraw.Draw(row).text((2, 1), text, fill="white")
    return row


def nearest(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes depth [h w], with the nearest depth that falls on each pixel, or 0.

    Sparse depth is drawn coarser, so that single points are visible.
    """
    sparse = is_sparse(depth)
    shown = np.where(depth > 0, depth, np.inf)
    for axis, (pixels, old) in enumerate(zip(size, depth.shape, strict=True)):
        cells = min(max(pixels // 2, 1) if sparse else pixels, old)
        starts = np.arange(cells) * old // cells
        shown = np.minimum.reduceat(shown, starts, axis=axis)
    shown = np.where(np.isfinite(shown), shown, 0).astype(np.float32)
    return np.asarray(Image.fromarray(shown).resize(size[::-1], Image.Resampling.NEAREST))


def is_sparse(depth: np.ndarray) -> bool:
    """Whether so few pixels have depth that they appear as points."""
    return bool((depth > 0).mean() < 0.3)


def _counted(counter: collections.Counter[str]) -> str:
    return ", ".join(f"{key} ({count})" for key, count in counter.most_common())


def main() -> None:
    parser = usage.argument_parser(__doc__)
    parser.add_argument("name", help=f"the source: {', '.join(registry.names('source'))}")
    parser.add_argument("--root", help="the data set's folder; a field like any other")
    parser.add_argument("--split", help="the split; a field like any other")
    parser.add_argument("--limit", type=int, default=200, help="frames to read; 0 for all")
    parser.add_argument("--output", help="also write a contact sheet to this PNG")
    parser.add_argument("--rows", type=int, default=8, help="frames in the contact sheet")
    flags, words = parser.parse_known_args()
    if flags.limit < 0 or flags.rows < 1:
        parser.error(
            f"--limit={flags.limit} must not be negative, and --rows={flags.rows} must be at least "
            "1"
        )
    output = None if flags.output is None else cli.output_file("--output", flags.output)
    given = {"root": flags.root, "split": flags.split}
    options = {name: value for name, value in given.items() if value is not None}
    source, missing = open_source(flags.name, options | cli.fields(words))
    good, figures, errors = read(source, flags.limit)
    print(f"{flags.name}: {len(source)} frames, {len(figures) + len(errors)} read")
    print(f"missing files: {missing or 'none'}")
    print("\n".join(report(figures)) if figures else "no frame could be read")
    print(f"unreadable frames: {len(errors)}")
    for error in errors[:LISTED]:
        print(f"  {error}")
    if output and good:
        count = min(flags.rows, len(good))
        chosen = [good[number * len(good) // count] for number in range(count)]
        sheet = contact_sheet([source[index] for index in chosen])
        atomic.write(output, lambda file: sheet.save(file, "PNG"))
    sys.exit(bool(missing or errors))


if __name__ == "__main__":
    with ending.one_line_errors():
        main()
