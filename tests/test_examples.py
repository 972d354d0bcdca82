"""The notebooks: they run as committed, and are committed without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import diffdepth_jax
from diffdepth_jax.inference.export import export
from diffdepth_jax.models.codec import CodecConfig
from diffdepth_jax.models.denoiser import DenoiserConfig
from diffdepth_jax.models.encoders import dinov2, resnet
from diffdepth_jax.models.necks import NeckConfig
from diffdepth_jax.models.networks import depth_anything, diffusion_depth
from diffdepth_jax.visualize import colour_depth

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CONFIG = diffusion_depth.Config(
    encoder=resnet.Config(depths=(1,), widths=(16,)),
    neck=NeckConfig(32),
    codec=CodecConfig(latent_channels=4, initial_depth=10.0),
    denoiser=DenoiserConfig(hidden_features=32),
    diffusion=diffusion_depth.DiffusionConfig(num_inference_steps=2),
    max_depth=80.0,
)

# Random weights, each large array sharded over eight devices.
WRITE = """
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from diffdepth_jax.config import to_mapping
from diffdepth_jax.training import sharding
from diffdepth_jax.training.checkpoint import Checkpointer
from diffdepth_jax.training.state import TrainState
from tests.test_examples import CONFIG, random_variables

state = TrainState(jnp.int32(9), **random_variables(), opt_state={}, ema_params={})
mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=8))
state = jax.device_put(state, sharding.of_state(state, mesh))
kernel = state.params["neck"]["lateral0"]["conv"]["kernel"]
print(jax.device_count(), len({str(shard.index) for shard in kernel.addressable_shards}))
with Checkpointer(Path(sys.argv[1]), keep=1) as checkpointer:
    checkpointer.save(9, state, {"model": to_mapping(CONFIG)}, b"", {})
"""

# Like Jupyter: runs the cells in order and shows the value of each last expression.
EXECUTE = """
import ast, json, sys

names = {}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]))
        shown = isinstance(tree.body[-1], ast.Expr) and tree.body.pop()
        exec(compile(tree, sys.argv[1], "exec"), names)
        if shown:
            names["shown"] = eval(compile(ast.Expression(shown.value), sys.argv[1], "eval"), names)
            if hasattr(names["shown"], "_repr_png_"):
                names["shown"].save(sys.argv[2])
"""


def random_variables(module=None):
    module, rng = module or diffusion_depth.build(CONFIG), np.random.default_rng(0)
    shapes = jax.eval_shape(module.init_variables, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: (
            rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
            if leaf.ndim == 1
            else (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)
        ),
        shapes,
    )


def python(code, devices, *arguments, cwd=EXAMPLES.parent, **variables):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_predict_on_one_device_with_a_checkpoint_from_eight(tmp_path):
    assert python(WRITE, 8, tmp_path / "run").split() == ["8", "8"]
    image = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    names = {"CHECKPOINT": str(tmp_path / "run"), "IMAGE": str(tmp_path / "image.png")}
    arguments = EXAMPLES / "predict.ipynb", tmp_path / "picture.png"
    printed = python(EXECUTE, 1, *arguments, cwd=EXAMPLES, **names)

    model = diffdepth_jax.DepthModel(diffusion_depth.build(CONFIG), random_variables(), CONFIG)
    depth = model.predict(image)
    assert depth.max() > 2 * depth.min()
    with Image.open(tmp_path / "picture.png") as picture:
        found = np.asarray(picture).astype(int)
    assert np.abs(found - np.concatenate([image, colour_depth(depth)])).max() <= 2
    assert "1 cpu device(s)" in printed and "after 9 updates" in printed
    assert f"40 x 24 pixels, {depth.min():.1f} to {depth.max():.1f} m" in printed


def test_networks_notebook_with_a_small_network(tmp_path):
    config = depth_anything.Config(
        encoder=dinov2.Config(
            embed_dim=16, num_heads=2, hidden_features=32, depth=8, taps=(1, 3, 5, 7), grid=5
        ),
        version=2,
        project_features=(8, 8, 8, 8),
        fused_features=8,
        output_features=4,
        max_depth=80.0,
    )
    module = depth_anything.build(config)
    model = diffdepth_jax.DepthModel(module, random_variables(module), config)
    weights = tmp_path / "depth_anything_v2_metric_vkitti_vits.safetensors"
    export(model, weights)
    image = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    names = {"WEIGHTS": weights, "IMAGE": tmp_path / "image.png", "PLY": tmp_path / "points.ply"}
    names = {name: str(path) for name, path in names.items()}
    arguments = EXAMPLES / "networks.ipynb", tmp_path / "picture.png"
    printed = python(EXECUTE, 1, *arguments, cwd=EXAMPLES, **names)

    depth = model.predict(image)
    assert "depth_anything: metric_depth" in printed
    assert f"960 points, {depth.min():.1f} to {depth.max():.1f} m away" in printed
    header, points = (tmp_path / "points.ply").read_bytes().split(b"end_header\n", 1)
    assert b"element vertex 960" in header and len(points) == 960 * 15
    losses = [float(word) for word in printed.split("loss")[1].split() if word != "->"]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stripped(path):
    command = [sys.executable, "-m", "nbstripout", "--verify", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")
