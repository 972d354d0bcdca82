"""`train.py` as a process, on its configs."""

import csv
import dataclasses
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

import diffdepth_jax
from diffdepth_jax import config as config_lib
from diffdepth_jax import locking
from diffdepth_jax.training import experiment
from diffdepth_jax.training.objectives import self_diffusion
from tests import scripts

PROJECT = Path(__file__).resolve().parents[1]
CONFIGS = [
    path
    for path in sorted((PROJECT / "configs").glob("*.py"))
    if not path.stem.startswith("adverse_")  # for `generate_adverse.py`
]

# Small widths that still exercise every part of a model.
SMALL = (
    "--config.model.neck.features=8",
    "--config.model.denoiser.hidden_features=8",
    "--config.model.diffusion.num_inference_steps=2",
    "--config.num_steps=2",
    "--config.batch_size=2",
    "--config.logging.every_steps=1",
    "--config.data.train.num_workers=0",
)
SMALL_DEMO = ("--config.model.encoder.widths=(4,8)", "--config.model.encoder.depths=(1,1)")
SMALL_SWIN = ("--config.model.encoder.embed_dim=48", "--config.model.encoder.depths=(1,1,1,1)")


def train(config, workdir, *arguments):
    command = [f"--config=configs/{config}.py", f"--workdir={workdir}"]
    return scripts.run("train.py", *command, *arguments)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_survives_json(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"--config=configs/{path.name}" in module.__doc__
    exp = experiment.from_mapping(module.get_config().to_dict())
    mapping = config_lib.to_mapping(exp)
    groups = {name for name, value in mapping.items() if isinstance(value, dict)}
    assert groups <= set(module.get_config())  # The command line can set only fields of these.
    again = experiment.from_mapping(json.loads(json.dumps(mapping)))
    assert config_lib.differences(config_lib.to_mapping(again), mapping) == []


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # in ml_collections
def test_the_overrides_for_the_papers_recipe_are_read(monkeypatch):
    """The ones in the docstring of configs/kitti.py."""
    path = PROJECT / "configs" / "kitti.py"
    recipe = path.read_text().split("Overrides for the paper's recipe")[1].split("\n\n")[1]
    arguments = shlex.split(recipe.replace("\\\n", " "))
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=flag_values)
    command = ["train.py", f"--config={path}", *arguments]
    monkeypatch.setattr(sys, "argv", command)  # where ml_collections looks for overrides
    flag_values(command)
    exp = experiment.from_mapping(flag_values.config.to_dict())
    objective = self_diffusion.VARIANTS["paper"]
    assert dataclasses.replace(exp.objective, max_depth=objective.max_depth) == objective
    assert exp.model.denoiser.variant == "paper"
    assert (exp.optimizer.name, exp.optimizer.schedule) == ("adamw", "cosine")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([f"--config.seed={2**70}"], f"seed is {2**70}"),
        (["--config.bach_size=4"], "did you mean 'batch_size'?"),
        (["--config.optimzer.learning_rate=1"], 'Did you mean "optimizer"'),
        (["--config.batch_size=four"], "--config.batch_size=four"),
        (["--config.grid.data=2"], "no group 'grid'"),
        (["--config.data.train.augmentation.crop=(1,2,3)"], "must have 2 elements"),
        (["--config.data.train.source.root=nowhere"], "nowhere does not exist"),
        (["--workdri=here"], "Did you mean: workdir"),
        (["--workdir="], "workdir"),
        (["stray"], "'stray' is not a flag"),
        (["--config.data.train.augmentation.crop=(80,9000)"], "smaller than the crop 80x9000"),
        (["--config.evaluation.protocol=kitti_eigen"], "smaller than the kb crop of 352x1216"),
        (["--config.data.train.source.split={empty}"], "empty.txt"),
        (["--config.init.encoder=README.md"], "config.init.encoder: README.md"),
    ],
)
def test_a_mistake_is_a_one_line_error_and_nothing_is_written(tmp_path, arguments, message):
    (tmp_path / "empty.txt").write_text("")
    arguments = [argument.format(empty=tmp_path / "empty.txt") for argument in arguments]
    result = train("demo", tmp_path / "run", *arguments)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    text = result.stderr.splitlines()[-1]
    assert text.startswith("train.py: error: ") and message in text
    assert not (tmp_path / "run").exists()


def test_an_unwritable_workdir_is_a_one_line_error():
    result = train("demo", "/proc/run")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("train.py: error: ") and "/proc/run" in result.stderr


def test_a_config_file_that_is_missing_is_named(tmp_path):
    result = train("demmo", tmp_path)
    assert result.returncode == 2
    (text,) = result.stderr.splitlines()
    assert "configs/demmo.py" in text


@pytest.mark.slow
def test_the_demo_runs_end_to_end_and_continues(tmp_path):
    small = (*SMALL, *SMALL_DEMO, "--config.data.evaluation_limit=3")
    result = train("demo", tmp_path, *small)
    assert result.returncode == 0, result.stderr
    assert "abs_rel" in result.stdout and "median map" in result.stdout
    assert "Traceback" not in result.stderr
    for name in ("metrics.json", "per_image.csv", "curves.png", "predictions.png", "denoising.png"):
        assert (tmp_path / name).stat().st_size > 100, name
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["num_images"] == 3 and metrics["baseline"]["abs_rel"] > 0
    assert [row["step"] for row in rows_of(tmp_path / "metrics.csv")] == ["1", "2"]

    model = diffdepth_jax.load(tmp_path)
    depth = model.predict(np.zeros((33, 50, 3), np.uint8))
    assert depth.shape == (33, 50) and np.isfinite(depth).all()

    result = train("demo", tmp_path, *small, "--config.num_steps=3")
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in rows_of(tmp_path / "metrics.csv")] == ["1", "2", "3"]
    # Step 2 as well, the best evaluated so far.
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "3"]


@pytest.mark.slow
def test_the_regression_control_trains_evaluates_and_predicts(tmp_path):
    result = train(
        "demo_regression",
        tmp_path / "run",
        "--config.model.neck.features=8",
        "--config.model.hidden_features=8",
        "--config.model.encoder.widths=(4,8)",
        "--config.model.encoder.depths=(1,1)",
        "--config.num_steps=3",
        "--config.batch_size=2",
        "--config.logging.every_steps=1",
        "--config.data.evaluation_limit=2",
    )
    assert result.returncode == 0, result.stderr
    rows = rows_of(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3"] and "ddim" not in rows[0]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["num_images"] == 2 and metrics["baseline"]["abs_rel"] > 0
    assert (tmp_path / "run" / "predictions.png").exists()
    assert not (tmp_path / "run" / "denoising.png").exists()

    image = next((PROJECT / "sample" / "raw").rglob("*.jpg"))
    flags = [f"--checkpoint={tmp_path / 'run'}", f"--input={image}"]
    flags.append(f"--output={tmp_path / 'out'}")
    for arguments, code in (([], 0), (["--num_inference_steps=5"], 2)):
        predicted = scripts.run("predict.py", *flags, *arguments)
        assert predicted.returncode == code, predicted.stderr
    assert "does not denoise" in predicted.stderr and "Traceback" not in predicted.stderr
    depth = np.load(next((tmp_path / "out").rglob("*.npy")))
    assert np.isfinite(depth).all() and depth.min() > 0


@pytest.mark.slow
def test_a_stopped_run_says_how_to_resume_and_fails(tmp_path):
    command = [sys.executable, "train.py", "--config=configs/demo.py", f"--workdir={tmp_path}"]
    arguments = (*SMALL, *SMALL_DEMO, "--config.num_steps=100000")
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    shown = ""
    while "compile" not in shown:  # The progress bar starts with training.
        shown += (part := process.stderr.read(1))
        assert part, shown
    process.terminate()
    output, errors = process.communicate()
    assert process.returncode == 143, errors
    (step,) = os.listdir(tmp_path / "checkpoints")
    text = f"SIGTERM: step {step} is saved in {tmp_path}; run the same command to resume"
    assert output.splitlines() == [text]
    assert "Traceback" not in errors


def test_ctrl_c_during_the_imports_prints_one_line(tmp_path):
    (tmp_path / "optax.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "train.py", "--config=configs/demo.py"]
    result = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 130
    (text,) = result.stderr.splitlines()
    assert text == "train.py: interrupted"
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_a_workdir_learns_who_holds_it(tmp_path):
    with locking.hold(tmp_path, "training"):
        result = train("demo", tmp_path, *SMALL, *SMALL_DEMO)
    assert result.returncode == 2, result.stderr
    (text,) = result.stderr.splitlines()
    for fact in ("train.py: error: ", str(tmp_path), f"process {os.getpid()} on ", " since "):
        assert fact in text
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_steps_and_the_evaluation_on_real_kitti_frames(tmp_path, shared):
    result = train(
        "kitti",
        tmp_path,
        *SMALL,
        *SMALL_SWIN,
        "--config.model.neck.hahi_features=8",
        f"--config.data.train.source.root={shared}/data/kitti_raw_metric3d",
        f"--config.data.train.source.depth_root={shared}/data/kitti_depth",
        "--config.data.train.source.split=val",
        "--config.data.evaluation.split=val",
        "--config.data.train.augmentation.crop=(64,96)",
    )
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in rows_of(tmp_path / "metrics.csv")] == ["1", "2"]
    rows = {row["id"]: row for row in rows_of(tmp_path / "per_image.csv")}
    # Pixel counts and mean depths in the garg crop of the kb crop, 1e-3 to 80 m.
    expected = {5: (82930, 16.3860), 50: (89864, 17.2152), 100: (79635, 16.5490)}
    for frame, (count, mean) in expected.items():
        row = rows[f"2011_09_26_drive_9999_sync_{frame:010d}_image_02"]
        assert int(row["num_valid"]) == count
        assert round(float(row["mean_depth"]), 4) == mean


@pytest.mark.slow
def test_two_steps_and_the_evaluation_on_real_nyu_frames(tmp_path, shared):
    frames = ["00000", "00050", "00100"]
    split = tmp_path / "frames.txt"
    scene = "sync/basement_0001a"
    split.write_text(
        "\n".join(f"{scene}/rgb_{name}.jpg {scene}/sync_depth_{name}.png 518.9" for name in frames)
    )
    result = train(
        "nyu",
        tmp_path / "run",
        *SMALL,
        *SMALL_SWIN,
        "--config.model.neck.hahi_features=8",
        f"--config.data.train.source.root={shared}/data/nyu_depth_v2",
        "--config.data.train.source.layout=sync",
        f"--config.data.evaluation.split={split}",
        "--config.data.train.augmentation.crop=(64,96)",
        "--config.evaluation.protocol=nyu",
    )
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in rows_of(tmp_path / "run" / "metrics.csv")] == ["1", "2"]
    rows = {row["id"]: row for row in rows_of(tmp_path / "run" / "per_image.csv")}
    expected = [(221809, 3.5762), (225022, 3.4836), (202035, 2.7923)]  # eigen crop, 1e-3 to 10 m
    for name, (count, mean) in zip(frames, expected, strict=True):
        row = rows[f"basement_0001a_rgb_{name}"]
        assert int(row["num_valid"]) == count
        assert round(float(row["mean_depth"]), 4) == mean
