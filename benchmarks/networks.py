"""Time and peak memory of one image's depth, beside eager PyTorch with the same random weights.

    .venv-torch/bin/python benchmarks/networks.py [--cases=dpt_large,...] >> results/networks.csv

PyTorch runs the model classes of transformers (MiDaS v2.1, which it lacks, is written out here),
saved in their own layout, and ours is loaded from those files. Each framework has a process of its
own with two threads; the two compute in turn, round by round, so that other work on the machine
meets both. Each row has the medians and their ratio. Peaks are of resident memory: while predicting
(weights included, loading and compilation not), and from the start of the process on. "first" is
the time to the first result, imports and loading included; "first cached" is ours with JAX's
persistent compilation cache filled.
"""

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# The input's height and width, as 480x640 images are fed. transformers' DPT on ViT takes squares
# only: about as many pixels as 384x512.
CASES = {
    "depth_anything_vits": (518, 686),
    "depth_anything_vitb": (518, 686),
    "dpt_large": (448, 448),
    "midas_v21": (288, 384),
}
THREADS = 2


def image_of(case: str) -> np.ndarray:
    """A normalised image [1, h, w, 3]."""
    return np.random.default_rng(0).standard_normal((1, *CASES[case], 3)).astype(np.float32)


# ---- PyTorch -------------------------------------------------------------------------------------


def torch_model(case: str, attention: str) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    if case == "midas_v21":
        return midas_v21()
    if case == "dpt_large":
        config = transformers.DPTConfig(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            backbone_out_indices=[5, 11, 17, 23],
            neck_hidden_sizes=[256, 512, 1024, 1024],
            qkv_bias=True,
            attn_implementation=attention,
        )
        return transformers.DPTForDepthEstimation(config)
    width, heads, features = {"s": (384, 6, 64), "b": (768, 12, 128)}[case[-1]]
    backbone = transformers.Dinov2Config(
        hidden_size=width,
        num_attention_heads=heads,
        image_size=518,
        patch_size=14,
        out_indices=[3, 6, 9, 12],
        apply_layernorm=True,
        reshape_hidden_states=False,
        attn_implementation=attention,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=width,
        neck_hidden_sizes=[features * 3 // 4 * factor for factor in (1, 2, 4, 8)],
        fusion_hidden_size=features,
    )
    return transformers.DepthAnythingForDepthEstimation(config)


def midas_v21() -> Any:
    """MiDaS v2.1 large under the names of its published file (intel-isl/MiDaS, midas_net.py)."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, width: int, outputs: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=32, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
            if stride > 1 or inputs != outputs:
                shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

        def forward(self, inputs):
            hidden = functional.relu(self.bn1(self.conv1(inputs)), inplace=True)
            hidden = functional.relu(self.bn2(self.conv2(hidden)), inplace=True)
            hidden = self.bn3(self.conv3(hidden))
            shortcut = self.downsample(inputs) if hasattr(self, "downsample") else inputs
            return functional.relu(hidden + shortcut, inplace=True)

    def stage(inputs: int, width: int, outputs: int, depth: int, stride: int) -> nn.Sequential:
        first = Bottleneck(inputs, width, outputs, stride)
        return nn.Sequential(
            first, *[Bottleneck(outputs, width, outputs, 1) for _ in range(depth - 1)]
        )

    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(256, 256, 3, 1, 1) for _ in range(2))

        def forward(self, inputs):
            inputs = functional.relu(inputs)
            return self.conv2(functional.relu(self.conv1(inputs))) + inputs

    class Fusion(nn.Module):
        def __init__(self):
            super().__init__()
            self.resConfUnit1, self.resConfUnit2 = Unit(), Unit()

        def forward(self, level, coarser=None):
            fused = level if coarser is None else coarser + self.resConfUnit1(level)
            fused = self.resConfUnit2(fused)
            return functional.interpolate(
                fused, scale_factor=2, mode="bilinear", align_corners=True
            )

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.pretrained = nn.Module()
            self.pretrained.layer1 = nn.Sequential(
                stem,
                nn.BatchNorm2d(64),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, 2, 1),
                stage(64, 256, 256, 3, 1),
            )
            self.pretrained.layer2 = stage(256, 512, 512, 4, 2)
            self.pretrained.layer3 = stage(512, 1024, 1024, 23, 2)
            self.pretrained.layer4 = stage(1024, 2048, 2048, 3, 2)
            self.scratch = nn.Module()
            for index, channels in enumerate((256, 512, 1024, 2048), 1):
                conv = nn.Conv2d(channels, 256, 3, 1, 1, bias=False)
                setattr(self.scratch, f"layer{index}_rn", conv)
                setattr(self.scratch, f"refinenet{index}", Fusion())
            self.scratch.output_conv = nn.Sequential(
                nn.Conv2d(256, 128, 3, 1, 1),
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Conv2d(128, 32, 3, 1, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(32, 1, 1),
                nn.ReLU(inplace=True),
            )

        def forward(self, image):
            levels = []
            for index in range(1, 5):
                image = getattr(self.pretrained, f"layer{index}")(image)
                levels.append(getattr(self.scratch, f"layer{index}_rn")(image))
            fused = None
            for index in (4, 3, 2, 1):
                fused = getattr(self.scratch, f"refinenet{index}")(levels[index - 1], fused)
            return self.scratch.output_conv(fused)

    net = Net()
    with torch.no_grad():
        net.scratch.output_conv[4].bias.fill_(1.0)
    return net


def torch_worker(case: str, folder: Path, attention: str) -> Callable[[], np.ndarray]:
    import torch

    torch.set_num_threads(THREADS)
    model = torch_model(case, attention).eval()
    if case == "midas_v21":
        torch.save(model.state_dict(), folder / "midas_v21_384.pt")
    else:
        model.save_pretrained(folder)
    image = torch.from_numpy(image_of(case).transpose(0, 3, 1, 2).copy())

    def predict() -> np.ndarray:
        with torch.inference_mode():
            result = model(image)
        return (result if case == "midas_v21" else result.predicted_depth).numpy()

    return predict


# ---- JAX -----------------------------------------------------------------------------------------


def jax_worker(case: str, folder: Path) -> Callable[[], np.ndarray]:
    import jax

    import diffdepth_jax

    model = diffdepth_jax.load(folder / "midas_v21_384.pt" if case == "midas_v21" else folder)
    image = image_of(case)
    apply = jax.jit(model.model.apply)
    return lambda: np.asarray(apply(model.variables, image))


# ---- measuring -----------------------------------------------------------------------------------


def memory(name: str) -> float:
    """MB, of this process's line in /proc."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024


def work(framework: str, case: str, folder: Path, attention: str) -> None:
    """A process of one framework: computes once for each line that it reads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    start = time.perf_counter()
    if framework == "torch":
        predict = torch_worker(case, folder, attention)
    else:
        predict = jax_worker(case, folder)
    depth = predict()
    first = time.perf_counter() - start
    np.save(folder / f"{framework}.npy", depth.reshape(CASES[case]))
    overall = memory("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    print(json.dumps({"first": first}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        predict()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    print(json.dumps({"peak": memory("VmHWM"), "overall": max(overall, memory("VmHWM"))}))


def measure(case: str, attention: str, rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        workers = {}
        for framework in ("torch", "jax"):  # the first writes the weights
            options = ["--worker", framework, "--cases", case, "--folder", folder]
            workers[framework] = subprocess.Popen(
                [sys.executable, __file__, *options, "--attention", attention],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"},
            )
            results[framework] = json.loads(workers[framework].stdout.readline()) | {"seconds": []}
        for _ in range(rounds):
            for framework, worker in workers.items():
                worker.stdin.write("\n")
                worker.stdin.flush()
                answer = json.loads(worker.stdout.readline())
                results[framework]["seconds"].append(answer["seconds"])
        for framework, worker in workers.items():
            results[framework] |= json.loads(worker.communicate()[0])
        depths = [np.load(Path(folder, f"{name}.npy")).astype(np.float64) for name in workers]
        cache = str(Path(folder, "cache"))
        first_depth(case, attention, folder, cache)  # fills it
        results["cached"] = first_depth(case, attention, folder, cache)
    results["error"] = np.linalg.norm(depths[1] - depths[0]) / np.linalg.norm(depths[0])
    return results


def first_depth(case: str, attention: str, folder: str, cache: str | None) -> float:
    """Seconds from the start of JAX's process to its first result."""
    options = ["--worker", "jax", "--cases", case, "--folder", folder, "--attention", attention]
    variables = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if cache:
        variables["JAX_COMPILATION_CACHE_DIR"] = cache
    done = subprocess.run(
        [sys.executable, __file__, *options],
        input="",
        capture_output=True,
        text=True,
        env=os.environ | variables,
    )
    return json.loads(done.stdout.splitlines()[0])["first"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--attention", default="sdpa", help="transformers': sdpa or eager")
    parser.add_argument("--worker", choices=("torch", "jax"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        work(flags.worker, flags.cases, flags.folder, flags.attention)
        return

    from importlib.metadata import version

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    writer = csv.writer(sys.stdout)
    for case in flags.cases.split(","):
        results = measure(case, flags.attention, flags.rounds)
        ours, theirs = results["jax"], results["torch"]
        seconds = [statistics.median(each["seconds"]) for each in (ours, theirs)]
        row = [case, "{}x{}".format(*CASES[case]), f"torch, {flags.attention} attention"]
        row += [f"{each:.3f}" for each in (*seconds, seconds[0] / seconds[1])]
        row += [f"{each['peak']:.0f}" for each in (ours, theirs)]
        row += [f"{ours['peak'] / theirs['peak']:.2f}"]
        row += [f"{each['overall']:.0f}" for each in (ours, theirs)]
        row += [f"{each['first']:.1f}" for each in (ours, theirs)]
        row += [f"{results['cached']:.1f}"]
        row += [f"{results['error']:.1e}", commit]
        row += [f"{THREADS} threads (load {os.getloadavg()[0]:.1f})"]
        writer.writerow([*row, f"jax {version('jax')} torch {version('torch')}"])
        sys.stdout.flush()


if __name__ == "__main__":
    main()
