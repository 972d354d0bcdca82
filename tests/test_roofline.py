"""What `benchmarks/roofline.py` counts."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of the folder `benchmarks`, as its scripts do."""
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    return __import__


def convolve(inputs, kernel, padding="SAME", **options):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        inputs, kernel, padding=padding, dimension_numbers=layout, **options
    )


def loop(matrix):
    return lax.scan(lambda carry, _: (carry @ matrix, None), matrix, length=5)[0]


IMAGE, KERNEL = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))
MATRIX = jnp.ones((3, 3))


@pytest.mark.parametrize(
    "function, arguments, wanted",
    [
        (jnp.matmul, (jnp.ones((2, 3, 5)), jnp.ones((2, 5, 7))), ("dot_general", 210, 568, 1)),
        (loop, (MATRIX,), ("dot_general", 27, 108, 5)),
        (
            lambda *arrays: convolve(*arrays, window_strides=(2, 2)),
            (IMAGE, KERNEL),
            ("conv_general_dilated", 2 * 4 * 4 * 6 * 9 * 4, 4 * (512 + 216 + 192), 1),
        ),
        (
            lambda *arrays: convolve(*arrays, window_strides=(1, 1), feature_group_count=2),
            (IMAGE.astype(jnp.bfloat16), KERNEL[:, :, :2].astype(jnp.bfloat16)),
            ("conv_general_dilated", 2 * 8 * 8 * 6 * 9 * 2, 2 * (512 + 108 + 768), 1),
        ),
        (  # a transposed convolution: only a quarter of the values under the kernel are non-zero
            lambda *arrays: convolve(
                *arrays, ((1, 2), (1, 2)), window_strides=(1, 1), lhs_dilation=(2, 2)
            ),
            (IMAGE[:, :3, :3], jnp.ones((4, 4, 4, 6))),
            ("conv_general_dilated", 2 * 5 * 5 * 6 * 16 * 4 // 4, 4 * (72 + 384 + 300), 1),
        ),
        (lambda array: array.sum(0), (MATRIX,), ("reduce_sum", 0, 4 * (9 + 3), 1)),
    ],
    ids=["product", "loop", "strided", "grouped", "transposed", "sum"],
)
def test_operations_are_counted_with_their_memory_traffic(function, arguments, wanted, benchmark):
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    assert list(benchmark("counting").operations(jaxpr)) == [wanted]


def test_an_operation_takes_the_longer_of_arithmetic_and_memory(benchmark):
    roofline, operation = benchmark("roofline"), benchmark("counting").Operation
    gpu = roofline.Gpu("any", {"tf32": 100.0, "bf16": 200.0}, 10.0)
    arithmetic, memory = operation("dot_general", 500, 10, 3), operation("reduce_sum", 0, 40, 2)
    assert roofline.seconds([arithmetic], gpu, "tf32") == 3 * 10.0
    assert roofline.seconds([arithmetic], gpu, "bf16") == 3 * 5.0
    assert roofline.seconds([arithmetic, memory], gpu, "tf32") == 30.0 + 2 * 4.0


def test_the_script_lists_the_stages_and_their_sum(tmp_path):
    def rows(steps):
        path = tmp_path / f"{steps}.csv"
        command = [sys.executable, "benchmarks/roofline.py", "--variants=res18", "--size=64x64"]
        subprocess.run(
            [*command, f"--steps={steps}", f"--results={path}"],
            check=True,
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            capture_output=True,
        )
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    two, four = rows(2), rows(4)
    assert [row["stage"] for row in two[:5]] == [
        "encoder",
        "neck",
        "sampler, 2 steps",
        "decoder",
        "whole",
    ]
    assert [row["dtype"] for row in two] == ["tf32"] * 5 + ["bf16"] * 5
    for column in ("gflop", "RTX 3090 ms"):
        *stages, whole = (float(row[column]) for row in two[:5])
        assert whole == pytest.approx(sum(stages), rel=0.02)
        assert float(four[2][column]) == pytest.approx(2 * stages[2], rel=0.02)
