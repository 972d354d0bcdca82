"""Our own checkpoints, written on eight devices by another process and read here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffdepth_jax.errors import FileError, MissingFileError, WeightsError
from diffdepth_jax.weights import checksums, orbax

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
    subprocess.run(command, env=os.environ | flags, check=True)
    return root


def test_reads_checkpoints_from_more_devices(runs):
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
    monkeypatch.chdir(run)  # Orbax itself requires absolute paths
    assert orbax.read_arrays("checkpoints").step == 10


def test_latest_step_ignores_incomplete_checkpoints(runs, tmp_path):
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
    with pytest.raises(MissingFileError, match="nowhere"):
        orbax.read_arrays(tmp_path / "nowhere")
    with pytest.raises(FileError, match="cannot be read"):
        orbax.read_arrays(tmp_path / ("n" * 300))
    with pytest.raises(WeightsError, match="no complete checkpoint"):
        orbax.read_arrays(tmp_path)
    with pytest.raises(WeightsError, match=r"step 3, only of steps \[9, 10\]"):
        orbax.read_arrays(runs / "full", step=3)


def refusal(directory) -> str:
    """What reading prints, in a separate process: when one read by Orbax fails, others that it has
    started fail later and noisily in the background."""
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
    text = refusal(directory)
    assert f"WeightsError: {directory} is damaged or not a checkpoint" in text
    assert "no complete older step" in text


@pytest.mark.parametrize("file", ["state/_METADATA", "config/metadata", "state/**/d/*"])
def test_a_flipped_bit_is_found_by_the_checksums(runs, tmp_path, file):
    """Even in an array, where it would just be another number."""
    shutil.copytree(runs / "full" / "checkpoints", tmp_path / "checkpoints")
    directory = tmp_path / "checkpoints" / "10"
    checksums.write(directory)
    assert orbax.read_arrays(directory).step == 10
    path = max(directory.glob(file), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        orbax.read_arrays(tmp_path)
    assert f"{path.relative_to(directory)} has changed" in str(caught.value)
    assert f"{directory} is damaged" in str(caught.value) and "step 9" in str(caught.value)


@pytest.mark.parametrize("part", ["state/d", "state/manifest.ocdbt", "config/metadata"])
def test_missing_parts_and_an_older_step_are_named(runs, tmp_path, part):
    shutil.copytree(runs / "full" / "checkpoints", tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "10" / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(WeightsError, match=rf"{part} is missing.*step 9") as caught:
        orbax.read_arrays(tmp_path)
    assert str(tmp_path / "checkpoints" / "10") in str(caught.value)


def test_a_model_needs_no_position_in_the_data(runs, tmp_path):
    directory = tmp_path / "10"
    shutil.copytree(runs / "full" / "checkpoints" / "10", directory)
    checksums.write(directory)
    shutil.rmtree(directory / "data")
    assert orbax.read_arrays(directory).step == 10
    assert orbax.faults(directory) == ["data/metadata is missing"]


@pytest.mark.parametrize("config", ["[]", "{}", '{"model": 3}', '{"model": {}}', "null"])
def test_an_invalid_config_is_named(runs, tmp_path, config):
    shutil.copytree(runs / "full" / "checkpoints" / "10", tmp_path / "10")
    file = tmp_path / "10" / "config" / "metadata"
    file.write_text(config)
    with pytest.raises(WeightsError, match="has no model") as caught:
        orbax.read_arrays(tmp_path / "10")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("file", ["config/metadata", "state/_METADATA"])
def test_deep_json_is_damage(runs, tmp_path, file):
    directory = tmp_path / "10"
    shutil.copytree(runs / "full" / "checkpoints" / "10", directory)
    (directory / file).write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="is damaged") as caught:
        orbax.read_arrays(directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "{}", '{"step": "9"}', "\udcff"])
def test_a_damaged_note_of_the_best_step_is_named(runs, tmp_path, text):
    shutil.copytree(runs / "full" / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "best.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match=r"best\.json"):
        orbax.checkpoint_directory(tmp_path, step="best")


def test_the_error_for_a_removed_best_step_names_note_and_remaining_steps(runs, tmp_path):
    shutil.copytree(runs / "full" / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "best.json").write_text('{"step": 99}')
    with pytest.raises(WeightsError, match=r"best\.json.*\b99\b.*\b10\b"):
        orbax.checkpoint_directory(tmp_path, step="best")


def test_weights_that_are_not_finite_are_named_in_a_warning(runs, monkeypatch):
    import orbax.checkpoint as ocp

    restore = ocp.PyTreeCheckpointHandler.restore

    def spoilt(handler, directory, args):
        state = restore(handler, directory, args=args)
        state["params"]["head"]["bias"][1] = np.nan
        return state

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", spoilt)
    with pytest.warns(UserWarning, match=r"checkpoints/10 contain NaN .*: params/head/bias\."):
        orbax.read_arrays(runs / "full")


@pytest.mark.parametrize("error", [Exception, ValueError, RecursionError, NotImplementedError])
def test_errors_of_orbax_about_damage_are_reported_with_the_directory(tmp_path, error):
    with (
        pytest.raises(WeightsError, match=r"10 is damaged .*array index \\x1b"),
        orbax.naming_damage(tmp_path / "10", ["state"]),
    ):
        raise error("Encountered error while reading array index \x1b")


def test_a_bug_keeps_its_error_class(tmp_path):
    with pytest.raises(RuntimeError), orbax.naming_damage(tmp_path / "10", ["state"]):
        raise RuntimeError("Array has been deleted")
