"""Checkpoints of ours, written on eight devices by another process, read here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffdepth_jax.errors import WeightsError
from diffdepth_jax.weights import orbax

WRITER = """
import sys
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec


@flax.struct.dataclass
class TrainState:
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any


mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
place = lambda array, *axes: jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
params = {
    "head": {
        "kernel": place(jnp.arange(64.0).reshape(16, 4), "data"),
        "bias": place(jnp.ones(3, jnp.bfloat16)),
    }
}
for name, batch_stats, ema_params in (
    ("full", {"norm": {"mean": place(jnp.full(2, 5.0))}}, jax.tree.map(lambda a: a + 1, params)),
    ("plain", {}, {}),
):
    manager = ocp.CheckpointManager(
        Path(sys.argv[1]) / name / "checkpoints", item_names=("state", "config", "data")
    )
    for step in (9, 10):
        state = TrainState(
            step=place(jnp.asarray(step)),
            params=params,
            batch_stats=batch_stats,
            opt_state=optax.adam(1e-3).init(params),
            ema_params=ema_params,
        )
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                config=ocp.args.JsonSave({"model": {"name": "diffusion_depth"}, "seed": step}),
                data=ocp.args.JsonSave({"iterator": "there"}),
            ),
        )
    manager.close()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WRITER, str(root)]
    subprocess.run(command, env=os.environ | flags, check=True, timeout=300)
    return root


def test_reads_what_more_devices_wrote(runs):
    contents = orbax.read_arrays(runs / "full")
    assert jax.device_count() != 8
    assert contents.step == 10
    assert contents.config == {"model": {"name": "diffusion_depth"}, "seed": 10}
    kernel = np.arange(64, dtype=np.float32).reshape(16, 4)
    np.testing.assert_array_equal(contents.params["head"]["kernel"], kernel)
    np.testing.assert_array_equal(contents.ema_params["head"]["kernel"], kernel + 1)
    np.testing.assert_array_equal(contents.batch_stats["norm"]["mean"], [5, 5])
    assert contents.params["head"]["bias"].dtype == "bfloat16"
    for leaf in jax.tree.leaves((contents.params, contents.batch_stats, contents.ema_params)):
        assert type(leaf) is np.ndarray


def test_without_average_and_statistics(runs):
    contents = orbax.read_arrays(runs / "plain")
    assert contents.batch_stats == {} and contents.ema_params == {}
    assert contents.params["head"]["kernel"].shape == (16, 4)


def test_reads_on_one_device(runs):
    code = (
        "import sys, jax; from diffdepth_jax.weights import orbax; "
        "print(jax.device_count(), orbax.read_arrays(sys.argv[1]).params['head']['kernel'].sum())"
    )
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, str(runs / "full")]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["1", "2016.0"]


def test_the_three_kinds_of_directory(runs, tmp_path, monkeypatch):
    run = runs / "full"
    assert orbax.read_arrays(run / "checkpoints").step == 10
    assert orbax.read_arrays(run / "checkpoints" / "9").config["seed"] == 9
    assert orbax.read_arrays(run, step=9).step == 9
    shutil.copytree(run / "checkpoints" / "9", tmp_path / "best")
    assert orbax.read_arrays(tmp_path / "best").step == 9
    monkeypatch.chdir(run)  # Orbax itself wants absolute paths
    assert orbax.read_arrays("checkpoints").step == 10


def test_latest_step_ignores_what_is_not_complete(runs, tmp_path):
    assert orbax.latest_step(runs / "full") == 10
    assert orbax.latest_step(str(runs / "full" / "checkpoints")) == 10
    assert orbax.latest_step(tmp_path) is None
    assert orbax.latest_step(tmp_path / "nowhere") is None
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(runs / "full" / "checkpoints" / "9", checkpoints / "9")
    shutil.copytree(
        runs / "full" / "checkpoints" / "10", checkpoints / "11.orbax-checkpoint-tmp-123"
    )
    (checkpoints / "12" / "state").mkdir(parents=True)
    assert orbax.latest_step(tmp_path) == 9
    assert orbax.read_arrays(tmp_path).step == 9


def test_the_optimizer_is_not_read(runs, tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    asked = []
    restore = ocp.PyTreeCheckpointHandler.restore

    def spy(handler, directory, args):
        asked.append(set(args.item))
        return restore(handler, directory, args=args)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", spy)
    orbax.read_arrays(runs / "full")
    assert asked == [{"step", "params", "batch_stats", "ema_params"}]


def test_missing_runs_and_steps(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        orbax.read_arrays(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="no complete checkpoint"):
        orbax.read_arrays(tmp_path)
    with pytest.raises(WeightsError, match=r"step 3, only of \[9, 10\]"):
        orbax.read_arrays(runs / "full", step=3)


def refusal(directory) -> str:
    """What reading says, in a process of its own: where a read of Orbax fails, others that it has
    begun fail later and noisily in the background."""
    code = "import sys; from diffdepth_jax.weights import orbax; orbax.read_arrays(sys.argv[1])"
    command = [sys.executable, "-c", code, str(directory)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    return run.stderr


@pytest.mark.parametrize("part", ["state/_METADATA", "config/metadata", "state/d/*", "foreign"])
def test_damaged_checkpoints_are_named(runs, tmp_path, part):
    directory = tmp_path / "10"
    shutil.copytree(runs / "full" / "checkpoints" / "10", directory)
    if part == "foreign":  # a checkpoint of another program
        metadata = directory / "state" / "_METADATA"
        text = json.dumps(json.loads(metadata.read_text())).replace("ema_params", "average")
        metadata.write_text(text)
    for file in directory.glob(part):
        os.truncate(file, file.stat().st_size // 2)
    assert f"WeightsError: {directory} is damaged or not a checkpoint" in refusal(directory)
