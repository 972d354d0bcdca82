"""Scoring saved depth maps of any model: two folders whose files share their stems.

Either side holds 16-bit PNG (metres times a scale, 0 = none) or `.npy` (metres); where both lie
side by side, as `predict.py` writes them, the `.npy` is read, which is exact. Predictions without
ground truth are left out and counted. Needs NumPy and Pillow only.
"""

import glob
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffdepth_jax.data import io
from diffdepth_jax.evaluation.protocols import Protocol
from diffdepth_jax.evaluation.run.dataset import score_dataset

_SUFFIXES = (".npy", ".png")  # the first is preferred
_SHOWN = 10  # of the names in an error


def score_predictions(
    predictions: str | os.PathLike,
    ground_truth: str | os.PathLike,
    protocols: Sequence[Protocol],
    workdir: str | os.PathLike,
    png_scale: float = 256.0,
    ground_truth_png_scale: float | None = None,
    *,
    compare: Mapping[str, str] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Scores one folder against another and writes what `dataset.score_dataset` writes, and
    `report.html`.

    Args:
      predictions, ground_truth: a folder, a file, or a pattern such as `out/*.npy`. Every ground
        truth must have a prediction of its stem.
      protocols: how to score.
      workdir: for the results.
      png_scale: PNG value per metre: 256 as KITTI, 1000 for millimetres.
      ground_truth_png_scale: the same for the ground truth where it differs.
      compare: other results to put beside these; see `dataset.score_dataset`.
      progress: show a progress bar.

    Returns:
      What each `metrics.json` holds, by the protocol's name; its options say of which kind the
      files were and how many predictions had no ground truth.

    Raises:
      FileNotFoundError: for a folder that is missing or holds no depth map.
      ValueError: for ground truth without a prediction, a file that is no depth map, sizes that do
        not go together; names the files.
    """
    scales = (png_scale, png_scale if ground_truth_png_scale is None else ground_truth_png_scale)
    for name, scale in zip(("png_scale", "ground_truth_png_scale"), scales, strict=True):
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"{name} is {scale}; it must be positive and finite")
    pairs, num_unmatched = pair_files(predictions, ground_truth)
    options = {
        "predictions": _kinds(path for _, path, _ in pairs),
        "ground_truth": _kinds(path for _, _, path in pairs),
        "png_scale": scales[0],
        "ground_truth_png_scale": scales[1],
        "predictions_without_ground_truth": num_unmatched,
    }
    from diffdepth_jax.evaluation.report import page  # Only here: it draws with Matplotlib.

    samples = _Pairs(pairs, scales)
    results = score_dataset(
        None, samples, protocols, workdir, options=options, compare=compare, progress=progress
    )
    page.save(Path(workdir).expanduser(), protocols, None, samples)
    return results


class _Pairs(Sequence[Mapping[str, Any]]):
    """Samples that hold their prediction, read when they are asked for."""

    def __init__(self, pairs: Sequence[tuple[str, Path, Path]], scales: tuple[float, float]):
        self._pairs = pairs
        self._scales = scales

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        stem, *paths = self._pairs[index]
        prediction, depth = (
            read_depth(path, scale) for path, scale in zip(paths, self._scales, strict=True)
        )
        return {"id": stem, "prediction": prediction, "depth": depth}


def pair_files(
    predictions: str | os.PathLike, ground_truth: str | os.PathLike
) -> tuple[list[tuple[str, Path, Path]], int]:
    """(stem, prediction, ground truth) for each ground truth, sorted by stem, and how many
    predictions have none; see `score_predictions` for errors."""
    predicted, measured = find(predictions), find(ground_truth)
    if missing := sorted(measured.keys() - predicted.keys()):
        raise ValueError(
            f"{len(missing)} of {len(measured)} in {ground_truth} have no prediction of the same "
            f"stem in {predictions}: {_list(missing)}"
        )
    pairs = [(stem, predicted[stem], measured[stem]) for stem in sorted(measured)]
    return pairs, len(predicted) - len(measured)


def read_depth(path: Path, png_scale: float) -> np.ndarray:
    """A depth map float64 [h, w] in metres.

    Raises:
      ValueError: naming the file, if it is damaged, holds 8 bits a pixel, or is no map.
    """
    if path.suffix.lower() == ".png":
        return io.read_depth_png(path, png_scale, np.float64)
    depth = io.read_npy(path)
    if depth.ndim == 3 and 1 in (depth.shape[0], depth.shape[-1]):
        depth = depth.squeeze(0 if depth.shape[0] == 1 else -1)
    if depth.ndim != 2 or not np.issubdtype(depth.dtype, np.floating):
        raise ValueError(
            f"{path} holds {depth.dtype} {list(depth.shape)}; an .npy depth map must be floating "
            "point metres [h, w]"
        )
    return depth.astype(np.float64)


def find(source: str | os.PathLike) -> dict[str, Path]:
    """The depth files of a folder or pattern by their stem.

    Raises:
      FileNotFoundError: if there are none.
      ValueError: if two of them share a stem and are not one map in two formats.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = list(path.iterdir())
    elif path.exists():
        found = [path]
    else:
        # Brackets in the name of a folder that exists are no pattern.
        folder = next(parent for parent in path.parents if parent.is_dir())
        pattern = Path(glob.escape(str(folder)), path.relative_to(folder))
        found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
        if not found:
            raise FileNotFoundError(
                f"{source} is neither a folder nor a pattern that matches files"
            )
    files = [path for path in found if path.suffix.lower() in _SUFFIXES and path.is_file()]
    if not files:
        raise FileNotFoundError(
            f"{source} holds no .png and no .npy file (folders within it are not searched)"
        )
    stems: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: (_SUFFIXES.index(path.suffix.lower()), path)):
        other = stems.setdefault(path.stem, path)
        if other is path or (other.parent == path.parent and _kind(other) != _kind(path)):
            continue
        raise ValueError(f"{other} and {path} share a stem: which is meant? Choose by a pattern")
    return stems


def _kind(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _kinds(paths: Iterable[Path]) -> str:
    return "+".join(sorted({_kind(path) for path in paths}))


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
