"""How computing in bfloat16 changes the depth of trained networks.

    .venv/bin/python benchmarks/bfloat16.py runs/demo runs/demo_regression [--frames=20]

Each run is loaded in float32, and again with convolutions and matrix products in bfloat16
(parameters, norms and latents stay float32). Both predict the same frames of the committed sample's
validation split from the same noise. Prints AbsRel on exact depth up to 80 m for both, and the
difference between them: relative difference of depth (median and 99th percentile over pixels), and
relative L2 difference of the condition and of the denoised latent.

The CPU rounds like a GPU, so errors carry over; times do not. Appends rows to
results/bfloat16.csv.
"""

import argparse
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

import diffdepth_jax
from diffdepth_jax.data.sources import kitti
from diffdepth_jax.evaluation import metrics
from diffdepth_jax.inference import preprocessing
from diffdepth_jax.inference.model import DepthModel
from diffdepth_jax.ops import random

RESULTS = harness.PROJECT / "results" / "bfloat16.csv"
SAMPLE = harness.PROJECT / "sample"
MAX_DEPTH = 80.0


def frames(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and their exact depth, spread evenly over the validation split."""
    options = {"depth_root": str(SAMPLE / "depth"), "depth": "dense"}
    source = kitti.source("val", SAMPLE / "raw", **options)
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    return [(source[index]["image"], source[index]["depth"]) for index in chosen]


def relative_l2(got: Any, wanted: Any) -> float:
    got, wanted = (np.asarray(each, np.float64) for each in (got, wanted))
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def parts(model: DepthModel, image: np.ndarray) -> dict[str, jax.Array]:
    """Condition and latent of an image, if the network has them."""
    inputs = jnp.asarray(preprocessing.to_input(image, model.input_spec)[None])
    noise = random.normal(jax.random.key(0), model.model.latent_shape(inputs.shape))

    @jax.jit
    def compute(variables: Any) -> dict[str, jax.Array]:
        condition = model.model.apply(variables, inputs, method="condition")
        latent = model.model.apply(variables, condition, noise, method="sample")
        return {"condition": condition, "latent": latent}

    return compute(model.variables)


def abs_rel(depth: np.ndarray, truth: np.ndarray) -> float:
    known = metrics.valid_pixels(truth, 0, MAX_DEPTH)
    depth = metrics.clip(depth, 1e-3, MAX_DEPTH)
    return metrics.compute(depth, truth, known, ("abs_rel",))["abs_rel"]


def row(run: Path, count: int) -> dict[str, Any]:
    single, half = (diffdepth_jax.load(run, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    chosen = frames(count)
    errors, scores = [], []
    for image, truth in chosen:
        depths = [model.predict(image, flip_tta=False) for model in (single, half)]
        errors.append(np.abs(depths[1] - depths[0]) / depths[0])
        scores.append([abs_rel(depth, truth) for depth in depths])
    found = {"condition": "", "latent": ""}
    if single.denoises:
        image = chosen[0][0]
        wanted, got = parts(single, image), parts(half, image)
        found = {name: f"{relative_l2(got[name], wanted[name]):.1e}" for name in wanted}
    before, after = np.mean(scores, axis=0)
    config: Any = single.config
    return {
        "run": run.name,
        "network": config.name,
        "encoder": config.encoder.name,
        "denoiser": config.denoiser.variant if single.denoises else "",
        "steps": single.model.num_inference_steps if single.denoises else "",
        "frames": len(scores),
        "abs_rel float32": f"{before:.4f}",
        "abs_rel bfloat16": f"{after:.4f}",
        "change": f"{after / before - 1:+.2%}",
        "depth median": f"{np.median(errors):.1e}",
        "depth 99%": f"{np.quantile(errors, 0.99):.1e}",
        **found,
        "commit": harness.commit(),
        "device": harness.device(),
        "versions": harness.versions("jax"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run directories")
    parser.add_argument("--frames", type=int, default=20, help="number of frames at most")
    parser.add_argument("--results", type=Path, default=RESULTS, help="- to print only")
    flags = parser.parse_args()
    for run in flags.runs:
        found = row(run, flags.frames)
        print("  ".join(f"{name}={value}" for name, value in found.items()), flush=True)
        if str(flags.results) != "-":
            harness.append(flags.results, [found])


if __name__ == "__main__":
    main()
