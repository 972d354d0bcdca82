"""How much GPUs send each other in a training step, and how far that slows them down.

    .venv/bin/python benchmarks/scaling.py [--config=configs/kitti.py] > table.md

Nothing is run, and no GPU is needed. The training step is compiled for eight simulated devices, and
the bytes of every collective operation are read from the compiled program. They depend neither on
the number of devices nor on the size of the images, so small images are used. (With a sharded
state, `mesh.fsdp`, the bytes do depend on that size, so that is not counted.) Multiply-adds are
counted in the traced step at the config's own image size, in loops as often as they run.

Times are a roofline, not a measurement: see `Machine`. A ring sends each byte of an all-reduce
twice, less the share that stays, and of an all-gather or reduce-scatter once. The last two columns
are the efficiency without any overlap of sending and computing, and with complete overlap.
"""

import argparse
import dataclasses
import math
import os
import re
import runpy
import sys
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from counting import multiply_adds

from diffdepth_jax.training import experiment, sharding
from diffdepth_jax.training import step as step_lib

DEVICES = 8  # simulated; also the number in each machine below
_SMALL = (64, 64)  # the image size with which collectives are counted
_SIZES = {
    "f32": 4,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "pred": 1,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Machines with eight GPUs, each with a network card, as specified by their makers.

    Attributes:
        flops: dense peak in the compute dtype, per second.
        share: fraction of the peak that the step reaches; an assumption.
        inside, outside: bytes per second that a GPU sends within its machine, and to other
            machines.
        latency: seconds that an operation takes however little it sends: once within a machine, and
            again for every doubling of the number of machines; an assumption.
    """

    name: str
    flops: float
    share: float
    inside: float
    outside: float
    latency: float = 10e-6


MACHINES = (
    # NVLink's 600 GB/s and 900 GB/s cover both directions; the cards have 200 and 400 Gbit/s.
    Machine("A100, TF32", 156e12, 0.4, 300e9, 25e9),
    Machine("A100, bfloat16", 312e12, 0.4, 300e9, 25e9),
    Machine("H100, bfloat16", 989e12, 0.4, 450e9, 50e9),
)


def step_of(config: dict[str, Any], crop: tuple[int, int], batch_size: int, mesh: Any) -> Any:
    """The jitted training step, and its abstract arguments."""
    augmentation = config["data"]["train"]["augmentation"] | {"crop": crop}
    train = config["data"]["train"] | {"augmentation": augmentation}
    data = config["data"] | {"train": train}
    exp = experiment.from_mapping(config | {"data": data, "batch_size": batch_size})
    step = step_lib.build(exp, mesh)

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    batch = {
        "image": array(*crop, 3),
        "depth": array(*crop, 1),
        "valid_mask": array(*crop, 1, dtype=jnp.bool_),
        "intrinsics": array(3, 3),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step.compiled(donate=False), (step.abstract_state, batch, key)


def collectives(text: str) -> Counter[str]:
    """Bytes of the arrays in a compiled program's collective operations, by kind.

    Operations in a loop count as often as it runs. "operations" is their number, "in loops" the
    bytes of those in loops.
    """
    counts: dict[str, Counter[str]] = {}
    calls: dict[str, list[tuple[str, int]]] = {}
    name = entry = ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = header[2]
            entry = name if header[1] else entry
            counts[name], calls[name] = Counter(), []
            continue
        operation = re.search(r"= (.*?) (" + "|".join(_KINDS) + r")(?:-start)?\(", line)
        if operation:
            # Each device gets a part of what a reduce-scatter sends.
            parts = DEVICES if operation[2] == "reduce-scatter" else 1
            counts[name][operation[2]] += parts * _bytes(operation[1])
            counts[name]["operations"] += 1
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        inner = re.findall(
            r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)", line
        )
        for called in inner:
            calls[name].append((called, int(trips[1]) if trips and "body=" in line else 1))

    def total(name: str) -> Counter[str]:
        found = Counter(counts.get(name, {}))
        for called, times in calls.get(name, ()):
            inner = total(called)
            if times > 1:
                inner["in loops"] = sum(inner[kind] for kind in _KINDS)
            for kind, size in inner.items():
                found[kind] += times * size
        return found

    return total(entry)


def _bytes(shapes: str) -> int:
    return sum(
        _SIZES[dtype] * int(np.prod([int(side) for side in sides.split(",") if side]))
        for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        if dtype in _SIZES
    )


def seconds_of_sending(sent: Counter[str], machine: Machine, gpus: int) -> float:
    """For a ring within each machine, and one between machines for each part that a GPU holds."""
    once = sum(sent[kind] for kind in _KINDS)
    hosts = gpus // DEVICES
    seconds = (once + sent["all-reduce"]) * (DEVICES - 1) / DEVICES / machine.inside
    # Between machines only gradients are summed; parameters are gathered within each machine.
    part = 2 * (sent["all-reduce"] + sent["reduce-scatter"]) / DEVICES
    seconds += part * (hosts - 1) / hosts / machine.outside
    return seconds + sent["operations"] * machine.latency * (1 + math.log2(hosts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/kitti.py")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    arguments = parser.parse_args()
    if any(gpus % DEVICES for gpus in arguments.gpus):
        parser.error(f"--gpus must be multiples of {DEVICES}")
    # Read when JAX first looks for devices.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"
    config = runpy.run_path(arguments.config)["get_config"]().to_dict()
    mesh = sharding.make_mesh(sharding.MeshConfig())

    step, abstract = step_of(config, _SMALL, DEVICES, mesh)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract[0].params))
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract[0]))
    print("compiling ...", file=sys.stderr)
    sent = collectives(step.lower(*abstract).compile().as_text())

    crop = tuple(config["data"]["train"]["augmentation"]["crop"])
    one = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    step, abstract = step_of(config, crop, 1, one)
    flops = 2 * multiply_adds(jax.make_jaxpr(step)(*abstract).jaxpr)

    print(f"{parameters / 1e6:.1f} million parameters, a state of {state / 1e9:.2f} GB")
    print(f"{flops / 1e12:.2f} TFLOP per image of {crop[0]}x{crop[1]}")
    for kind, size in sent.items():
        print(f"{kind}: {size}" if kind == "operations" else f"{kind}: {size / 1e6:.1f} MB")
    print("\n| machine | GPUs | images per step | computing | sending | efficiency | overlapped |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for machine in MACHINES:
        for gpus in arguments.gpus:
            computing = flops / (machine.flops * machine.share)
            sending = seconds_of_sending(sent, machine, gpus)
            efficiency = computing / (computing + sending)
            overlapped = computing / max(computing, sending)
            print(
                f"| {machine.name} | {gpus} | {gpus} | {1e3 * computing:.0f} ms | "
                f"{1e3 * sending:.1f} ms | {efficiency:.1%} | {overlapped:.0%} |"
            )


if __name__ == "__main__":
    main()
