"""Self-distillation with the trainer's options: resuming, meshes, bfloat16, freezing."""

import signal

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_parts
from pairs import write_pairs
from training_client import assert_equal, batches, rows_of, state_of

from diffdepth_jax.errors import DataError
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.models.networks.network import NetworkConfig
from diffdepth_jax.training import experiment, loop, sharding, teacher
from diffdepth_jax.training.sharding import MeshConfig
from diffdepth_jax.training.teacher import Teacher, TeacherConfig
from diffdepth_jax.typing import InputSpec
from diffdepth_jax.weights import orbax

PAIRS = {"source": {"name": "tiny", "pairs": True}, "augmentation": {"crop": (8, 8)}}


def data(**train):
    return {"train": {**PAIRS, **train}, "evaluation": {"name": "tiny", "count": 3}}


def train(server, experiment, workdir, **job):
    server.start(experiment, workdir, **job)
    code = server.wait()
    assert code in (0, -signal.SIGKILL), (workdir / "errors.txt").read_text()
    return code


def distilling(network, **changes):
    """Fields of an experiment that starts from the run `network` and takes its labels from it."""
    fields = {"init": {"network": str(network)}, "teacher": {"checkpoint": str(network)}}
    return fields | {"data": data(clean_share=0.5)} | changes


def test_a_killed_run_with_a_teacher_ends_like_an_uninterrupted_one(server, tmp_path):
    assert train(server, tiny_parts.EXPERIMENT | {"seed": 9}, tmp_path / "teacher") == 0
    experiment = tiny_parts.EXPERIMENT | distilling(
        tmp_path / "teacher",
        ema_decay=0.9,
        optimizer={"learning_rate": 1e-2, "multipliers": {"Conv_0": 0.0}},
        num_steps=7,
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(server, experiment, whole) == 0
    assert train(server, experiment, parts, kill={"batch": 5}) == -signal.SIGKILL
    assert train(server, experiment, parts) == 0
    assert_equal(state_of(whole, 7), state_of(parts, 7))
    assert rows_of(parts) == rows_of(whole)
    assert len(batches(parts)) > 7
    # All but the frozen part has learnt, and the average has moved from its start.
    state, start = state_of(whole, 7)[0], orbax.read_arrays(tmp_path / "teacher").params
    for name, part in state["params"].items():
        moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), part, start[name])
        assert (max(jax.tree.leaves(moved)) > 1e-4) == (name != "Conv_0"), name
    average = state["ema_params"]["Conv_1"]["kernel"]
    assert np.abs(average - start["Conv_1"]["kernel"]).max() > 0
    assert np.abs(average - state["params"]["Conv_1"]["kernel"]).max() > 0


def constant(root, frames):
    """Pairs in which some frames have constant labels."""
    write_pairs(root, relative=True)
    for frame in frames:
        path = root / "labels" / f"{frame}.npy"
        np.save(path, np.full_like(np.load(path), 2.5))
    source = {"name": "adverse", "root": str(root), "relative": "inverse"}
    augmentation = {"name": "distillation", "crop": (8, 8), "rotation": 0.0}
    return {"source": source, "augmentation": augmentation}


def test_constant_labels_are_counted_and_stop_the_run_if_all_are(tiny, tmp_path):
    tiny |= {"objective": {"name": "ssi"}, "num_steps": 6}
    tiny["data"]["train"] = constant(tmp_path / "some", "ab")
    loop.train(experiment.from_mapping(tiny), tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert 0 < np.mean([float(row["flat_labels"]) for row in rows]) < 1
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    tiny["data"]["train"] = constant(tmp_path / "all", "abc")
    with pytest.raises(DataError, match="no label in the first 6 steps is usable"):
        loop.train(experiment.from_mapping(tiny), tmp_path / "stopped")
    assert 6 not in orbax.steps(tmp_path / "stopped")


# Arrays that are large enough to be sharded.
REGRESSION = tiny_parts.EXPERIMENT | {
    "num_steps": 2,
    "batch_size": 8,
    "model": {
        "name": "regression",
        "encoder": {"name": "resnet", "depths": (1,), "widths": (32,)},
        "neck": {"features": 32},
        "codec": {"latent_channels": 4, "initial_depth": 5.0},
        "hidden_features": 16,
        "max_depth": 10.0,
    },
    "objective": {"name": "metric", "max_depth": 10.0},
    "optimizer": {"learning_rate": 1e-3, "eps": 1e-3},  # see test_mesh
    "logging": {"every_steps": 1},
    "checkpoint": {"every_steps": 2},
}


@pytest.mark.slow
def test_any_mesh_and_half_precision_give_the_same_distillation(server, tmp_path):
    alone = REGRESSION | {"objective": {"name": "pixel", "max_depth": 10.0}, "seed": 9}
    train(server, alone | {"num_steps": 1}, tmp_path / "teacher", devices=1)
    experiment = REGRESSION | distilling(tmp_path / "teacher", ema_decay=0.9)
    train(server, experiment, tmp_path / "one", devices=1)
    mesh = {"mesh": {"data": 2, "fsdp": 4}}
    train(server, experiment | mesh, tmp_path / "eight", devices=8)
    one, eight = (rows_of(tmp_path / name) for name in ("one", "eight"))
    for row, expected in zip(eight, one, strict=True):
        row, expected = ({k: float(v) for k, v in each.items()} for each in (row, expected))
        assert row == pytest.approx(expected, rel=1e-5)
    sizes = [int((tmp_path / name / "bytes.txt").read_text()) for name in ("one", "eight")]
    assert sizes[1] < 0.4 * sizes[0]

    train(server, experiment | {"compute_dtype": "bfloat16"}, tmp_path / "half", devices=1)
    half = rows_of(tmp_path / "half")
    assert float(half[0]["loss"]) != float(one[0]["loss"])
    assert float(half[0]["loss"]) == pytest.approx(float(one[0]["loss"]), rel=0.1)
    for leaf in jax.tree.leaves(orbax.read_arrays(tmp_path / "half").params):
        assert leaf.dtype == np.float32 and np.isfinite(leaf).all()


class Identity(nn.Module):
    """A network that returns the first channel and ignores its variables."""

    def __call__(self, image):
        return image[..., :1]


class Config(NetworkConfig):
    output = "metric_depth"
    input_spec = InputSpec()


def test_the_teachers_variables_are_sharded_like_a_state(monkeypatch):
    variables = {"params": {"kernel": np.ones((64, 128), np.float32), "bias": np.ones(3, "f4")}}
    model = DepthModel(Identity(), variables, Config(name="fake"))
    monkeypatch.setattr(teacher, "open_network", lambda *arguments: model)
    mesh = sharding.make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    built = Teacher(TeacherConfig("FILE"), model.config, mesh)
    parts = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, built._variables)
    assert parts == {"params": {"kernel": (64, 64), "bias": (3,)}}
    batch = {
        "clean_image": np.ones((4, 2, 3, 3), np.float32),
        "inside": np.ones((4, 2, 3, 1), bool),
    }
    labels = built.label(batch | {"relative_disparity": None}, step=1)
    assert labels.keys() == {"depth", "valid_mask"}
    assert labels["depth"].addressable_shards[0].data.shape == (2, 2, 3, 1)
