"""Pictures: colour maps of depth, training curves, denoising steps, predictions and ground truth.

Everything is drawn on separate figures (without pyplot or a display), so it works in scripts,
notebooks and worker threads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure

from diffdepth_jax import atomic

DEPTH_TICKS = (0.5, 1, 2, 3, 5, 10, 20, 30, 50, 80)  # metres, on the logarithmic scales
_INVALID = 128  # grey level of pixels without depth; not in the colour maps used
_PIXELS_PER_INCH = 100


def colour_depth(
    depth: Float[np.ndarray, "h w"],
    minimum: float | None = None,
    maximum: float | None = None,
    colour_map: str = "magma_r",
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours depth on a logarithmic scale: near is bright, far is dark.

    Args:
        depth: metres; pixels that are not finite and positive become grey.
        minimum, maximum: the ends of the scale in metres; None for the 2nd and 98th percentile.
        colour_map: name of a Matplotlib colour map.

    Returns:
        RGB.
    """
    valid = np.isfinite(depth) & (depth > 0)
    if minimum is None or maximum is None:
        low, high = depth_range(depth)
        minimum = low if minimum is None else minimum
        maximum = high if maximum is None else maximum
    span = max(np.log(maximum) - np.log(minimum), 1e-6)
    position = (np.log(np.where(valid, depth, minimum)) - np.log(minimum)) / span
    return _paint(position, valid, colour_map)


def depth_range(depth: Float[np.ndarray, "h w"]) -> tuple[float, float]:
    """The 2nd and 98th percentile of depth in metres; (1, 1) where none is finite and above 0."""
    return _percentiles(depth[np.isfinite(depth) & (depth > 0)], 1.0)


def colour_disparity(
    disparity: Float[np.ndarray, "h w"],
    minimum: float | None = None,
    maximum: float | None = None,
    colour_map: str = "magma",
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours relative disparity on a linear scale: near (large) is bright, far is dark.

    Args:
        disparity: pixels that are not finite are painted grey.
        minimum, maximum: the ends of the scale; None for the 2nd and 98th percentile.
        colour_map: name of a Matplotlib colour map.

    Returns:
        RGB.
    """
    valid = np.isfinite(disparity)
    if minimum is None or maximum is None:
        low, high = disparity_range(disparity)
        minimum = low if minimum is None else minimum
        maximum = high if maximum is None else maximum
    span = max(maximum - minimum, float(np.finfo(np.float32).tiny))
    return _paint((np.where(valid, disparity, minimum) - minimum) / span, valid, colour_map)


def disparity_range(disparity: Float[np.ndarray, "h w"]) -> tuple[float, float]:
    """The 2nd and 98th percentile of relative disparity; (0, 0) where none is finite."""
    return _percentiles(disparity[np.isfinite(disparity)], 0.0)


def _percentiles(values: Float[np.ndarray, "n"], otherwise: float) -> tuple[float, float]:
    if not values.size:
        return otherwise, otherwise
    low, high = np.percentile(values, (2, 98))
    return float(low), float(high)


def colour_error(
    prediction: Float[np.ndarray, "h w"],
    target: Float[np.ndarray, "h w"],
    valid_mask: Bool[np.ndarray, "h w"],
    maximum: float = 0.5,
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours |prediction - target| / target from white (0) to red (`maximum` or more).

    Pixels outside `valid_mask` become grey.
    """
    error = np.abs(prediction - target) / np.where(valid_mask, target, 1.0)
    return _paint(error / maximum, valid_mask, "Reds")


def colour_spread(
    spread: Float[np.ndarray, "h w"],
    unit: Float[np.ndarray, "h w"],
    maximum: float | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours spread / unit from white (0, samples agree) to purple (`maximum` or more).

    Args:
        spread: spread of the samples.
        unit: the samples' mean, for the relative spread, or ones; pixels where it is not positive
            become grey.
        maximum: None for `spread_maximum`.
    """
    relative, valid = _relative_spread(spread, unit)
    if maximum is None:
        maximum = spread_maximum(spread, unit)
    return _paint(relative / max(maximum, float(np.finfo(np.float32).tiny)), valid, "Purples")


def spread_maximum(spread: Float[np.ndarray, "h w"], unit: Float[np.ndarray, "h w"]) -> float:
    """The upper end of the colour scale of `colour_spread`: the 98th percentile."""
    relative, valid = _relative_spread(spread, unit)
    return float(np.percentile(relative[valid], 98)) if valid.any() else 1.0


def _relative_spread(
    spread: Float[np.ndarray, "h w"], unit: Float[np.ndarray, "h w"]
) -> tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    valid = np.isfinite(spread) & (unit > 0)
    return np.where(valid, spread, 0) / np.where(valid, unit, 1), valid


def _paint(
    position: Float[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], colour_map: str
) -> UInt8[np.ndarray, "h w 3"]:
    colours = matplotlib.colormaps[colour_map](np.clip(position, 0.0, 1.0), bytes=True)[..., :3]
    return np.where(valid[..., None], colours, np.uint8(_INVALID))


def save_curves(
    path: Path, columns: Mapping[str, Sequence[float]], title: str = "Training"
) -> None:
    """Plots every column of a run's scalars over its column `step`, each in a small panel."""
    # the loss first, the others in file order
    names = sorted((name for name in columns if name != "step"), key=lambda name: name != "loss")
    rows = -(-len(names) // 4)
    figure = Figure(figsize=(12, 0.5 + 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, 4, squeeze=False).flat
    for name, axes in zip(names, panels, strict=False):
        values = np.asarray(columns[name], np.float64)
        axes.plot(columns["step"], values, linewidth=1.2)
        if (values > 0).all() and values.max() > 20 * values.min():
            axes.set_yscale("log")
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    for axes in list(panels):
        axes.remove()
    figure.suptitle(f"{title} (over steps)", fontsize=12)
    _save(figure, path)


def save_denoising(
    path: Path,
    image: UInt8[np.ndarray, "h w 3"],
    depths: Mapping[str, Float[np.ndarray, "h w"]],
    target: Float[np.ndarray, "h w"],
) -> None:
    """Draws the image, depth decoded after several denoising steps, and the ground truth.

    Args:
        depths: caption to depth in metres, in denoising order.
        target: ground truth in metres, 0 where unmeasured; it sets the colour scale.
    """
    scale = _scale([target])
    panels = [("image", image)]
    panels += [(name, colour_depth(depth, *scale)) for name, depth in depths.items()]
    panels += [("ground truth", colour_depth(target, *scale))]
    columns = min(len(panels), 2 if image.shape[1] > 1.8 * image.shape[0] else 4)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    _save_grid(path, rows, scale)


def save_predictions(
    path: Path,
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    predictions: Sequence[Float[np.ndarray, "h w"]],
    targets: Sequence[Float[np.ndarray, "h w"]],
    abs_rel: Sequence[float],
) -> None:
    """Draws a row per sample: image, prediction (with its AbsRel), ground truth, error.

    Depth is in metres; targets are 0 where unmeasured.
    """
    scale = _scale(targets)
    rows = [
        [
            ("image", image),
            (f"prediction, AbsRel {value:.3f}", colour_depth(prediction, *scale)),
            ("ground truth", colour_depth(target, *scale)),
            ("relative error, white 0, red 0.5", colour_error(prediction, target, target > 0)),
        ]
        for image, prediction, target, value in zip(
            images, predictions, targets, abs_rel, strict=True
        )
    ]
    _save_grid(path, rows, scale)


def save_comparison(
    path: Path,
    images: Mapping[str, UInt8[np.ndarray, "h w 3"]],
    predictions: Mapping[str, Sequence[Float[np.ndarray, "h w"]]],
    targets: Sequence[Float[np.ndarray, "h w"]],
) -> None:
    """Draws a row per image: the image, every network's depth, and the ground truth.

    Args:
        images: images by caption.
        predictions: by caption, depth of all images in metres.
        targets: ground truth in metres, 0 where unmeasured; they set the colour scale.
    """
    scale = _scale(targets)
    rows = [
        [
            (caption, image),
            *((name, colour_depth(depths[row], *scale)) for name, depths in predictions.items()),
            ("ground truth", colour_depth(target, *scale)),
        ]
        for row, ((caption, image), target) in enumerate(zip(images.items(), targets, strict=True))
    ]
    _save_grid(path, rows, scale)


def _scale(targets: Sequence[Float[np.ndarray, "h w"]]) -> tuple[float, float]:
    """The ends of a colour scale for several ground truths, in metres."""
    measured = np.concatenate([target[target > 0] for target in targets])
    if not measured.size:
        return 1.0, 80.0
    low, high = np.percentile(measured, (1, 99))
    return float(low), float(max(high, low * 1.01))


def _save_grid(
    path: Path,
    rows: Sequence[Sequence[tuple[str, UInt8[np.ndarray, "h w 3"]]]],
    scale: tuple[float, float],
) -> None:
    height, width = rows[0][0][1].shape[:2]
    panel_width = 12.0 / len(rows[0])
    panel_height = panel_width * height / width + 0.3  # inches; one line for the caption
    figure = Figure(figsize=(12, panel_height * len(rows) + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, panels in zip(grid, rows, strict=True):
        for axes, (caption, picture) in zip(line, panels, strict=False):
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(caption, fontsize=9)
    mappable = matplotlib.cm.ScalarMappable(matplotlib.colors.LogNorm(*scale), cmap="magma_r")
    bar = figure.colorbar(
        mappable, ax=list(grid.flat), location="bottom", aspect=60, fraction=0.05, pad=0.02
    )
    ticks = [tick for tick in DEPTH_TICKS if scale[0] <= tick <= scale[1]]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label("depth (m)", fontsize=9)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    atomic.write(path, lambda file: figure.savefig(file, dpi=_PIXELS_PER_INCH, format="png"))
