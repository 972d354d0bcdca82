"""The least that a prediction costs on GPUs: operations and bytes of each stage, and a roofline.

    .venv/bin/python benchmarks/roofline.py [--variants=res50,...] [--size=352x1216] [--steps=20]

Nothing is run, and no GPU is needed: each stage is traced in the form that accelerators get, and
its matrix products, convolutions and reductions (of norms and softmax) are counted with the bytes
that they read and write; everything else is assumed to be fused into them. An operation takes the
longer of its arithmetic at peak rate and its bytes at memory bandwidth, and a stage the sum of its
operations (Williams et al. 2009). Real kernels stay below the peaks; kernels that need fewer
multiplications for a convolution, such as Winograd's, are not considered. For comparison there is
the speed that the DiffusionDepth paper reports for PyTorch on an RTX 3090 with 20 steps, without
stating the size or which ResNet and Swin: 14 and 5 images per second.

Appends rows to results/roofline.csv.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
from counting import Operation, operations

from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.ops import platform

RESULTS = harness.PROJECT / "results" / "roofline.csv"


@dataclass(frozen=True)
class Gpu:
    """Peaks as NVIDIA states them, dense (without sparsity).

    Attributes:
        name: the card's name.
        flops: floating-point operations per second by type of product: "tf32" is what JAX and
            PyTorch's cuDNN use for float32 by default, "bf16" accumulates in float32.
        bandwidth: of its memory, bytes per second.
    """

    name: str
    flops: dict[str, float]
    bandwidth: float


GPUS = (
    # Data sheets of the A100 (80 GB, SXM) and H100 (SXM); appendix A of the GA102 white paper.
    Gpu("A100", {"tf32": 156e12, "bf16": 312e12}, 2.039e12),
    Gpu("H100", {"tf32": 494.7e12, "bf16": 989.4e12}, 3.35e12),
    Gpu("RTX 3090", {"tf32": 35.6e12, "bf16": 71e12}, 0.936e12),
)
DTYPES = {"tf32": jnp.float32, "bf16": jnp.bfloat16}
PUBLISHED = {"res18": 14, "res50": 14, "res101": 14, "swin_large": 5, "swin_large_hahi": 5}


def stages(variant: str, size: tuple[int, int], steps: int, dtype: Any) -> dict[str, Any]:
    """The traced stages of a network for one image."""
    model = diffusion_depth.build(diffusion_depth.VARIANTS[variant], dtype)
    variables = jax.eval_shape(model.init_variables, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    noise = jax.ShapeDtypeStruct(model.latent_shape(image.shape), jnp.float32)
    traced: dict[str, Any] = {}

    def stage(name: str, method: Callable[..., Any], *arguments: Any) -> Any:
        def call(variables: Any, *arguments: Any) -> Any:
            return model.apply(variables, *arguments, method=method)

        traced[name], result = jax.make_jaxpr(call, return_shape=True)(variables, *arguments)
        return result

    with platform.tracing_for("cuda"):
        features = stage("encoder", lambda module, image: module.encoder(image, False), image)
        condition = stage("neck", lambda module, features: module.neck(features, False), features)
        latent = stage(
            f"sampler, {steps} steps",
            lambda module, condition, noise: module.sample(condition, noise, steps),
            condition,
            noise,
        )
        stage("decoder", lambda module, latent: module.decode_latent(latent), latent)
    return traced


def seconds(counted: Sequence[Operation], gpu: Gpu, dtype: str) -> float:
    """The roofline's time for operations run in sequence."""
    return sum(
        each.times * max(2 * each.multiply_adds / gpu.flops[dtype], each.bytes / gpu.bandwidth)
        for each in counted
    )


def rows(variant: str, size: tuple[int, int], steps: int, dtype: str) -> list[dict[str, Any]]:
    """One row per stage, and their sum."""
    traced = stages(variant, size, steps, DTYPES[dtype])
    counted = {name: list(operations(jaxpr.jaxpr)) for name, jaxpr in traced.items()}
    counted["whole"] = [each for stage in counted.values() for each in stage]
    found = []
    for name, stage in counted.items():
        row = {
            "network": variant,
            "size": f"{size[0]}x{size[1]}",
            "dtype": dtype,
            "stage": name,
            "gflop": f"{sum(2 * each.times * each.multiply_adds for each in stage) / 1e9:.4g}",
            "gbyte": f"{sum(each.times * each.bytes for each in stage) / 1e9:.4g}",
        }
        for gpu in GPUS:
            row[f"{gpu.name} ms"] = f"{1e3 * seconds(stage, gpu, dtype):.4g}"
        fps = PUBLISHED.get(variant) if name == "whole" and steps == 20 else None
        row["published ms on RTX 3090"] = f"{1e3 / fps:.0f}" if fps else ""
        found.append(row | {"commit": harness.commit(), "versions": harness.versions("jax")})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", default=",".join(diffusion_depth.VARIANTS))
    parser.add_argument("--size", default="352x1216", help="HEIGHTxWIDTH of the image")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS, help="- to print only")
    flags = parser.parse_args()
    height, width = map(int, flags.size.split("x"))
    columns = None
    for variant in flags.variants.split(","):
        for dtype in DTYPES:
            found = rows(variant, (height, width), flags.steps, dtype)
            if columns is None:
                columns = list(found[0])[:-2]
                print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
            for row in found:
                print("| " + " | ".join(row[name] for name in columns) + " |", flush=True)
            if str(flags.results) != "-":
                harness.append(flags.results, found)


if __name__ == "__main__":
    main()
