"""`gallery.html` and `contact_sheet.png`: the generated images at a glance.

The page is one self-contained file; `templates/gallery.html` defines its layout.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffdepth_jax import atomic
from diffdepth_jax.adverse import summary
from diffdepth_jax.adverse.config import GalleryConfig
from diffdepth_jax.adverse.manifest import Record
from diffdepth_jax.data import io as data_io
from diffdepth_jax.data.listing import known

PAGE_FILE, SHEET_FILE = "gallery.html", "contact_sheet.png"
FILES = (PAGE_FILE, SHEET_FILE)
_SHEET_FRAMES = 8
_CAPTION = 16  # pixels above an image
_GAP = 4


def write(workdir: Path, records: Sequence[Record], config: GalleryConfig) -> None:
    """Writes the page and the sheet for some frames, spread evenly.

    Raises:
        FileError: if they cannot be written, or an image in the records cannot be read.
    """
    frames = _frames(records, config.frames)
    pictures = {
        record.id: {
            "clean": _clean(workdir, record, config.width),
            "depth": _depth(workdir, record, config.width),
        }
        for shown in frames.values()
        for record in shown[:1]
        if record.clean is not None
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    text = environment.get_template(PAGE_FILE).render(
        data={
            "frames": {
                name: {kind: _as_url(picture) for kind, picture in pair.items()}
                for name, pair in pictures.items()
            },
            "images": [
                _shown(workdir, record, config.width)
                for shown in frames.values()
                for record in shown
            ],
        },
        conditions=list(dict.fromkeys(record.condition for record in records)),
        num_frames=len(frames),
        num_all=len({record.id for record in records}),
        rows=summary.rows(records),
        width=config.width,
    )
    atomic.write_text(workdir / PAGE_FILE, text)
    sheet = _sheet(workdir, _frames(records, _SHEET_FRAMES), config.width)
    atomic.write(workdir / SHEET_FILE, lambda file: sheet.save(file, "png"))


def _frames(records: Sequence[Record], number: int) -> dict[str, list[Record]]:
    """The records of at most this many frames, spread evenly, by frame id."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.id, []).append(record)
    names = list(groups)
    number = min(number, len(names))
    return {
        name: groups[name]
        for name in (names[place * len(names) // number] for place in range(number))
    }


def _shown(workdir: Path, record: Record, width: int) -> dict[str, Any]:
    structure = record.structure or {}
    return {
        "id": record.id,
        "condition": record.condition,
        "variant": record.variant,
        "status": record.status,
        "reason": record.reason or "",
        "prompt": record.prompt,
        "details": _text(record.details),
        "backend": record.backend,
        "abs_rel": structure.get("abs_rel"),
        "edge_agreement": structure.get("edge_agreement"),
        "image": _as_url(_made(workdir, record, width)) if record.image else None,
    }


def _text(value: Any) -> str:
    """The details of an image, formatted for people."""
    if isinstance(value, Mapping):
        return ", ".join(
            _text(each) if isinstance(each, Mapping) else f"{name} {_text(each)}"
            for name, each in value.items()
        )
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _clean(workdir: Path, record: Record, width: int) -> Image.Image:
    return _small(data_io.read_image(workdir / known(record.clean)), width)


def _made(workdir: Path, record: Record, width: int) -> Image.Image:
    return _small(data_io.read_image(workdir / known(record.image)), width)


def _depth(workdir: Path, record: Record, width: int) -> Image.Image:
    from diffdepth_jax import visualize  # needs Matplotlib; a finished run draws nothing

    label = data_io.read_npy(workdir / known(record.label))
    relative = record.label_is == "relative_disparity"
    colour = visualize.colour_disparity if relative else visualize.colour_depth
    return _small(colour(label), width)


def _small(image: np.ndarray, width: int) -> Image.Image:
    """An image with this width; upscaled without smoothing."""
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    picture = Image.fromarray(image)
    how = Image.Resampling.LANCZOS if width <= image.shape[1] else Image.Resampling.BICUBIC
    return picture.resize((width, height), how)


def _as_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _sheet(workdir: Path, frames: dict[str, list[Record]], width: int) -> Image.Image:
    """A row per frame: clean image, depth, and one image of each condition."""
    shown = next(iter(frames.values()))
    conditions = list(dict.fromkeys(record.condition for record in shown))
    rows = []
    for records in frames.values():
        first = records[0]
        row: list[tuple[str, Image.Image | None]] = [
            ("clean", None if first.clean is None else _clean(workdir, first, width)),
            ("depth", None if first.label is None else _depth(workdir, first, width)),
        ]
        for condition in conditions:
            record = next(each for each in records if each.condition == condition)
            picture = None if record.image is None else _made(workdir, record, width)
            row.append((_caption(record), picture))
        rows.append(row)
    heights = [max([picture.height for _, picture in row if picture], default=24) for row in rows]
    size = (
        len(rows[0]) * (width + _GAP) + _GAP,
        sum(height + _CAPTION + _GAP for height in heights) + _GAP,
    )
    sheet = Image.new("RGB", size, "white")
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(11), _GAP
    for row, height in zip(rows, heights, strict=True):
        for place, (caption, picture) in enumerate(row):
            left = _GAP + place * (width + _GAP)
            draw.text((left, top), caption, fill="black", font=font)
            if picture is not None:
                sheet.paste(picture, (left, top + _CAPTION))
        top += height + _CAPTION + _GAP
    return sheet


def _caption(record: Record) -> str:
    scores = "" if record.structure is None else f"  {record.structure['abs_rel']:.3f}"
    status = "" if record.status == "ok" else f"  {record.status}"
    name = record.condition if record.backend.startswith("diffusers") else record.backend
    return f"{name}{scores}{status}"
