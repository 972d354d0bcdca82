"""Exports images in the layout of the published data set; see `tools/export_adverse.py`."""

import os
import re
from collections import Counter
from pathlib import Path

from diffdepth_jax import atomic
from diffdepth_jax.adverse import manifest
from diffdepth_jax.adverse.manifest import Record
from diffdepth_jax.data.listing import known
from diffdepth_jax.errors import ConfigError, FileError, naming_file


def export(
    workdir: str | os.PathLike[str], output: str | os.PathLike[str], part: str
) -> dict[str, int]:
    """Copies all images with status `ok`, and their clean images and labels.

    Args:
        workdir: workdir of a finished run.
        output: created if needed.
        part: `driving/NAME` or `ToM`.

    Returns:
        Number of images of each condition.

    Raises:
        ConfigError: for an invalid part.
        FileError: if a file cannot be read or written, or a different file with that name exists.
    """
    if part != "ToM" and not re.fullmatch(r"driving/[\w-]+", part):
        raise ConfigError(
            f"part is {part!r}; it must be driving/NAME, for example driving/kitti, or ToM"
        )
    workdir, folder = Path(workdir).expanduser(), Path(output).expanduser() / part
    counts: Counter[str] = Counter()
    for record in manifest.read(workdir):
        if record.status != "ok":
            continue
        for file, target in _targets(record, part):
            _copy(workdir / file, folder / target)
        counts[record.condition] += 1
    return dict(counts)


def _targets(record: Record, part: str) -> list[tuple[str, str]]:
    """The files of an image, and their paths below the part's folder."""
    condition = f"{record.condition}_{record.variant}" if record.variant else record.condition
    if part == "ToM":  # a folder per object, with its own clean images
        image, clean = f"{condition}/challenging", f"{condition}/easy"
    else:
        image, clean = f"challenging/{condition}", "clean"
    return [
        (known(record.image), f"{image}/{record.id}.png"),
        (known(record.clean), f"{clean}/{record.id}.png"),
        (known(record.label), f"depth/{record.id}.npy"),
    ]


def _copy(file: Path, target: Path) -> None:
    with naming_file(file, "read"):
        content = file.read_bytes()
    with naming_file(target, "written"):
        if target.exists():
            if target.read_bytes() != content:
                raise FileError(
                    f"{target} already exists and differs from {file}: export to another folder, "
                    "or as another part"
                )
            return
        target.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(target, lambda out: out.write(content))
