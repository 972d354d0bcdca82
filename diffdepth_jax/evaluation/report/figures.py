"""Figures for the page, as `src` values of `<img>`."""

import base64
import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from diffdepth_jax.evaluation.protocols import frames

PICTURE_WIDTH = 420
_BINS = 24


def histogram(values: Sequence[float]) -> str:
    """Histogram of the images' values as SVG, with a line at the median."""
    low, high = min(values), max(values)
    figure, axes = _axes(3.2, 1.5)
    axes.hist(values, bins=_BINS, range=(low, high if high > low else low + 1), color="#7a9cc6")
    axes.axvline(float(np.median(values)), color="#c0392b", linewidth=1.2)
    axes.locator_params(axis="y", integer=True, nbins=3)
    return _svg(figure)


def sparsification(curves: Mapping[str, Sequence[float]]) -> str:
    """The mean remaining error as pixels are removed, as SVG.

    Args:
        curves: `sparsification` of a result.
    """
    figure, axes = _axes(4.4, 2.6)
    removed = curves["removed"]
    axes.axhline(1, color="#bbbbbb", linewidth=1, linestyle=":", label="at random")
    axes.plot(removed, curves["depth"], color="#999999", linestyle="--", label="by depth (control)")
    axes.plot(removed, curves["spread"], color="#6a51a3", linewidth=1.8, label="by the spread")
    axes.plot(
        removed, curves["oracle"], color="#222222", linewidth=1, label="by the error (oracle)"
    )
    axes.fill_between(removed, curves["oracle"], curves["spread"], color="#6a51a3", alpha=0.12)
    axes.set_xlim(0, removed[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("fraction of pixels removed", fontsize=8, color="#666666")
    axes.set_ylabel("fraction of error remaining", fontsize=8, color="#666666")
    axes.legend(fontsize=7, frameon=False)
    return _svg(figure)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors="#666666")
    return figure, axes


def _svg(figure: Figure) -> str:
    file = io.BytesIO()
    # Deterministic output: no date, and no random ids.
    with matplotlib.rc_context({"svg.hashsalt": "page"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _data_uri("svg+xml", file.getvalue())


def picture(array: np.ndarray) -> str:
    """A uint8 image [h, w, 3] as JPEG."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "jpeg", quality=85)
    return _data_uri("jpeg", file.getvalue())


def smaller(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Means of the pixels in `mask` over square blocks, so that sparse depth stays visible; NaN for
    empty blocks."""
    factor = max(math.ceil(array.shape[1] / PICTURE_WIDTH), 1)
    rows, columns = (side // factor for side in array.shape)
    blocks = (rows, factor, columns, factor)
    array, mask = (each[: rows * factor, : columns * factor] for each in (array, mask))
    sums = np.where(mask, array, 0).reshape(blocks).sum(axis=(1, 3), dtype=np.float64)
    counts = mask.reshape(blocks).sum(axis=(1, 3))
    return np.where(counts, sums / np.maximum(counts, 1), np.nan)


def smaller_image(image: np.ndarray) -> np.ndarray:
    """A uint8 image [h, w, 3] downscaled to the page's image width if it is larger."""
    width = min(PICTURE_WIDTH, image.shape[1])
    height = max(round(image.shape[0] * width / image.shape[1]), 1)
    return frames.resize_image(image, (height, width))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
