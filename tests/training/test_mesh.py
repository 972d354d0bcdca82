"""One run on one, two and eight simulated devices, with the state replicated or sharded."""

import shutil

import jax
import numpy as np
import pytest
import tiny_parts
from training_client import rows_of

import diffdepth_jax

# Large enough for arrays to be sharded. Every part of the method is in it, with one stage each,
# because compiling takes most of the time.
EXPERIMENT = tiny_parts.EXPERIMENT | {
    "num_steps": 2,
    "batch_size": 8,
    "ema_decay": 0.9,
    "model": {
        "name": "diffusion_depth",
        "encoder": {"name": "resnet", "depths": (1,), "widths": (32,)},
        "neck": {"features": 32},
        "codec": {"latent_channels": 4, "initial_depth": 5.0},
        "denoiser": {"hidden_features": 16, "num_groups": 2},
        "diffusion": {"num_inference_steps": 2},
        "max_depth": 10.0,
    },
    "objective": {"name": "self_diffusion", "max_depth": 10.0},
    # Adam divides a gradient by its own size, which blows up rounding errors of zero gradients.
    # With a larger epsilon they stay small.
    "optimizer": {"learning_rate": 1e-3, "eps": 1e-3},
    "logging": {"every_steps": 1},
    "checkpoint": {"every_steps": 2},
}
MESHES = {
    "one": (1, {}),
    "two": (2, {}),
    "eight": (8, {"data": 2, "fsdp": 4}),
}


def train(server, workdir, mesh, **changes):
    devices, fields = MESHES[mesh]
    server.start(EXPERIMENT | {"mesh": fields} | changes, workdir, devices=devices)
    assert server.wait() == 0, (workdir / "errors.txt").read_text()


def assert_close(workdir, other):
    """Losses and gradient norms of every step agree.

    Other devices sum a batch in another order, which in float32 changes the seventh digit; a mean
    or a statistic over part of the batch would change the first.
    """
    for row, expected in zip(rows_of(workdir), rows_of(other), strict=True):
        row, expected = ({k: float(v) for k, v in each.items()} for each in (row, expected))
        assert row == pytest.approx(expected, rel=5e-6)


@pytest.mark.slow
def test_all_meshes_train_alike_and_resume_from_each_other(server, tmp_path):
    for mesh in ("one", "two", "eight"):
        train(server, tmp_path / mesh, mesh)
        assert_close(tmp_path / mesh, tmp_path / "one")
    one, two, eight = (int((tmp_path / mesh / "bytes.txt").read_text()) for mesh in MESHES)
    assert two == one and eight < 0.4 * one

    # A model in one process, loaded from what eight devices saved in parts.
    model = diffdepth_jax.load(tmp_path / "eight")
    assert np.isfinite(model.predict(np.zeros((16, 16, 3), np.uint8))).all()
    for leaf, expected in zip(
        jax.tree.leaves(model.variables),
        jax.tree.leaves(diffdepth_jax.load(tmp_path / "one").variables),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-6)

    longer = EXPERIMENT["num_steps"] + 2
    shutil.copytree(tmp_path / "eight", tmp_path / "from eight")
    shutil.copytree(tmp_path / "one", tmp_path / "from one")
    train(server, tmp_path / "from eight", "one", num_steps=longer)
    train(server, tmp_path / "from one", "eight", num_steps=longer)
    assert len(rows_of(tmp_path / "from one")) == longer
    assert_close(tmp_path / "from one", tmp_path / "from eight")
