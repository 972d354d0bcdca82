"""Scoring saved depth maps of any model: two folders whose files share their stems.

Either side holds 16-bit PNG (metres times a scale, 0 = none) or `.npy` (metres). Needs NumPy and
Pillow only.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffdepth_jax.data import io
from diffdepth_jax.evaluation.evaluate import Case, score_cases
from diffdepth_jax.evaluation.protocols import Protocol

_SUFFIXES = (".png", ".npy")
_SHOWN = 10  # of the names in an error


def score_predictions(
    predictions: str | os.PathLike,
    ground_truth: str | os.PathLike,
    protocol: Protocol,
    workdir: str | os.PathLike,
    png_scale: float = 256.0,
    ground_truth_png_scale: float | None = None,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores one folder against another and writes what `evaluate.evaluate` writes.

    Args:
      predictions, ground_truth: a folder, or a pattern such as `out/*.npy` where a folder holds
        other files as well. Every stem must stand on both sides, once.
      protocol: how to score.
      workdir: for `metrics.json` and `per_image.csv`.
      png_scale: PNG value per metre: 256 as KITTI, 1000 for millimetres.
      ground_truth_png_scale: the same for the ground truth where it differs.
      progress: show a progress bar.

    Returns:
      What `metrics.json` holds.

    Raises:
      FileNotFoundError: for a folder that is missing or holds no depth map.
      ValueError: for stems that do not match, a file that is no depth map, sizes that do not go
        together; names the files.
    """
    scales = (png_scale, ground_truth_png_scale or png_scale)
    if min(scales) <= 0:
        raise ValueError(f"png_scale is {min(scales)}; it must be positive")
    pairs = pair_files(predictions, ground_truth)

    def cases() -> Iterator[Case]:
        for stem, *paths in tqdm(pairs, "score", unit=" images", disable=not progress):
            yield Case(stem, *(read_depth(p, s) for p, s in zip(paths, scales, strict=True)))

    options = {"png_scale": scales[0], "ground_truth_png_scale": scales[1]}
    return score_cases(cases(), protocol, workdir, options=options)


def pair_files(
    predictions: str | os.PathLike, ground_truth: str | os.PathLike
) -> list[tuple[str, Path, Path]]:
    """(stem, prediction, ground truth), sorted by stem; see `score_predictions` for errors."""
    predicted, measured = _by_stem(predictions), _by_stem(ground_truth)
    faults = [
        f"{len(missing)} without a {what} in {folder}: {_list(missing)}"
        for missing, what, folder in (
            (sorted(measured.keys() - predicted.keys()), "prediction", predictions),
            (sorted(predicted.keys() - measured.keys()), "ground truth", ground_truth),
        )
        if missing
    ]
    if faults:
        raise ValueError(
            "predictions and ground truth must share their stems; " + "; ".join(faults)
        )
    return [(stem, predicted[stem], measured[stem]) for stem in sorted(measured)]


def read_depth(path: Path, png_scale: float) -> np.ndarray:
    """A depth map [h, w] in metres, float64 of a PNG, the file's own type of an `.npy`.

    Raises:
      ValueError: naming the file, if it is damaged, holds 8 bits a pixel, or is no map.
    """
    if path.suffix.lower() == ".png":
        return io.read_depth_png(path, png_scale, np.float64)
    try:
        depth = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a depth map: {error}") from error
    if depth.ndim == 3 and 1 in (depth.shape[0], depth.shape[-1]):
        depth = depth.squeeze(0 if depth.shape[0] == 1 else -1)
    if depth.ndim != 2 or not np.issubdtype(depth.dtype, np.floating):
        raise ValueError(
            f"{path} holds {depth.dtype} {list(depth.shape)}; an .npy depth map must be floating "
            "point metres [h, w]"
        )
    return depth


def _by_stem(source: str | os.PathLike) -> dict[str, Path]:
    """The depth files of a folder or pattern."""
    if Path(source).is_dir():
        found = Path(source).iterdir()
    else:
        found = [Path(name) for name in glob.glob(os.fspath(source))]
        if not found:
            raise FileNotFoundError(
                f"{source} is neither a folder nor a pattern that matches files"
            )
    files = sorted(path for path in found if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not files:
        raise FileNotFoundError(
            f"{source} holds no .png and no .npy file (folders within it are not searched)"
        )
    stems: dict[str, Path] = {}
    for path in files:
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise ValueError(
                f"{other} and {path.name} share a stem; choose one kind by a pattern such as "
                f"{path.parent / '*'}{path.suffix}"
            )
    return stems


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
