"""Depth of one image, and the pictures and text that the page shows about it."""

import html
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from diffdepth_jax import visualize
from diffdepth_jax.app.uploads import Upload
from diffdepth_jax.inference import results, sampling
from diffdepth_jax.inference.model import DepthModel
from diffdepth_jax.models.networks.network import Output

MOST_SAMPLES = 16
_MOST_PROGRAMS = 32  # compiled ones, for different image sizes and options, that are kept

_ONE_AT_A_TIME = threading.Lock()
_programs: set[object] = set()


@dataclass(frozen=True)
class Options:
    """What the visitor chooses.

    Attributes:
        num_inference_steps: denoising steps, one of `step_choices`; None for a network that does no
            denoising, or for the checkpoint's own number.
        num_samples: with more than 1, depth is their mean; at most `MOST_SAMPLES`.
        seed: seed of the noise.
    """

    num_inference_steps: int | None = None
    num_samples: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Prediction:
    """Depth of one image.

    Attributes:
        upload: the image.
        depth: metres or relative disparity, as `output` says; the mean of several samples.
        output: what `depth` holds.
        steps: depth in metres decoded after each denoising step, of the first sample; empty for a
            network that does no denoising.
        spread: standard deviation of the samples; None for a single sample.
        seconds: how long it took, including compilation.
    """

    upload: Upload
    depth: Float[np.ndarray, "h w"]
    output: Output
    steps: Float[np.ndarray, "n h w"]
    spread: Float[np.ndarray, "h w"] | None
    seconds: float

    @property
    def is_metric(self) -> bool:
        return self.output == "metric_depth"


def step_choices(model: DepthModel) -> list[int]:
    """The numbers of denoising steps that the checkpoint supports, in ascending order."""
    if not model.denoises:
        return []
    return sorted({model.model.num_inference_steps, *model.recalibrated})


def describe(model: DepthModel) -> str:
    """One line about a model."""
    facts = [f"network {model.config.name}", f"predicts {results.WHAT[model.output]}"]
    if model.config.max_depth is not None:
        facts.append(f"at most {model.config.max_depth:g} m")
    if model.denoises:
        facts.append(f"{model.model.num_inference_steps} denoising steps")
    return ", ".join(facts)


def predict(model: DepthModel, upload: Upload, options: Options) -> Prediction:
    """Depth of an image, and what it looks like during denoising.

    Only one prediction is computed at a time, for all visitors together.

    Raises:
        ConfigError: for options that the model does not support.
        DataError: for an image that is too narrow for the network.
    """
    depth: Any
    with _ONE_AT_A_TIME:
        steps_asked, seed = options.num_inference_steps, options.seed
        _forget_programs((model.model, upload.image.shape, steps_asked, options.num_samples))
        start = time.perf_counter()
        spread: Any = None
        if options.num_samples > 1:
            number = min(options.num_samples, MOST_SAMPLES)
            sampled: Any = model.predict(upload.image, None, seed, steps_asked, num_samples=number)
            depth, spread = sampled
            seed = sampling.sample_seeds(seed, number)[0]
        else:
            depth = model.predict(upload.image, None, seed, steps_asked)
        steps = np.zeros((0, *depth.shape), np.float32)
        if model.denoises:
            steps = model.trajectory(upload.image, steps_asked, seed)
        seconds = time.perf_counter() - start
    return Prediction(upload, depth, model.output, steps, spread, seconds)


def _forget_programs(program: object) -> None:
    """Keeps compiled programs from filling the memory when images have many sizes."""
    if len(_programs | {program}) > _MOST_PROGRAMS:
        jax.clear_caches()
        _programs.clear()
    _programs.add(program)


def summary(prediction: Prediction) -> str:
    """One line about a prediction."""
    height, width = prediction.depth.shape
    line = f"{width} x {height} pixels"
    if (height, width) != prediction.upload.original_size:
        original_height, original_width = prediction.upload.original_size
        line += f" (resized from {original_width} x {original_height})"
    if prediction.is_metric:
        near, middle, far = np.nanpercentile(prediction.depth, (0, 50, 100))
        line += f" · depth from {near:.3g} m to {far:.3g} m, median {middle:.3g} m"
    else:
        line += " · relative disparity: what is nearer and farther, not how far in metres"
    return line + f" · {prediction.seconds:.2g} s"


def picture(prediction: Prediction) -> UInt8[np.ndarray, "h w 3"]:
    """The result in colours, on the scale that `legend` shows."""
    return results.coloured(prediction.depth, prediction.output)


def legend(prediction: Prediction) -> str:
    """HTML of the colour scale: in metres, or only from near to far for relative disparity."""
    if not prediction.is_metric:
        return _bar("magma_r", [(0.0, "near"), (1.0, "far")], "relative, no unit")
    low, high = visualize.depth_range(prediction.depth)
    span = max(np.log(high) - np.log(low), 1e-6)
    ticks = [tick for tick in visualize.DEPTH_TICKS if low <= tick <= high]
    places = [(float(np.log(tick / low) / span), f"{tick:g}") for tick in ticks]
    return _bar("magma_r", places, "depth in metres, near to far")


def spread_legend(prediction: Prediction) -> str:
    """HTML of the colour scale of `spread_picture`."""
    assert prediction.spread is not None
    unit = results.spread_unit(prediction.depth, prediction.output)
    most = visualize.spread_maximum(prediction.spread, unit)
    if prediction.is_metric:
        ends, of = [(0.0, "0%"), (1.0, f"{most:.2%}")], "of the depth"
    else:
        ends, of = [(0.0, "0"), (1.0, f"{most:.2g}")], "in the unit of the disparity"
    return _bar("Purples", ends, f"standard deviation of the samples, {of}")


def spread_picture(prediction: Prediction) -> UInt8[np.ndarray, "h w 3"]:
    """Where the samples differ; white where they agree."""
    assert prediction.spread is not None
    unit = results.spread_unit(prediction.depth, prediction.output)
    return visualize.colour_spread(prediction.spread, unit)


def _bar(colour_map: str, ticks: list[tuple[float, str]], caption: str) -> str:
    colours = matplotlib.colormaps[colour_map](np.linspace(0, 1, 17), bytes=True)[:, :3]
    gradient = ", ".join(f"rgb({red}, {green}, {blue})" for red, green, blue in colours)
    marks = "".join(
        f'<span style="left: {100 * place:.2f}%">{html.escape(text)}</span>'
        for place, text in ticks
    )
    return (
        f'<div class="legend"><div class="bar" style="background: linear-gradient(to right, '
        f'{gradient})"></div><div class="ticks">{marks}</div>'
        f'<div class="caption">{html.escape(caption)}</div></div>'
    )


def step_pictures(prediction: Prediction) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The denoising steps in colours, all on the scale of the last one."""
    if not len(prediction.steps):
        return []
    scale = visualize.depth_range(prediction.steps[-1])
    return [visualize.colour_depth(depth, *scale) for depth in prediction.steps]


def step_captions(prediction: Prediction) -> list[str]:
    """How far each denoising step is from the last."""
    if not len(prediction.steps):
        return []
    last = prediction.steps[-1]
    known = np.isfinite(last) & (last > 0)
    captions = []
    for number, depth in enumerate(prediction.steps, start=1):
        caption = f"after step {number} of {len(prediction.steps)}"
        if number < len(prediction.steps):
            change = np.mean(np.abs(depth[known] - last[known]) / last[known]) if known.any() else 0
            caption += f": depth differs by {change:.1%} on average from the last step's"
        captions.append(caption)
    return captions


def save_picture(array: UInt8[np.ndarray, "h w 3"], path: Path) -> Path:
    """Writes a picture for the page to show, in the format of its suffix."""
    Image.fromarray(array).save(path, quality=92)
    return path
