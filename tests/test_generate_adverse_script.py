"""`generate_adverse.py` as a process, on its configs."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import config as config_lib
from diffdepth_jax.adverse import config
from tests import scripts

PROJECT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((PROJECT / "configs").glob("adverse_*.py"))
SMALL = ("--config.conditions=('night','fog')", "--config.labels=source", "--config.limit=3")


def generate(name, workdir, *arguments, **environment):
    flags = (f"--config=configs/{name}.py", f"--workdir={workdir}")
    return scripts.run("generate_adverse.py", *flags, *arguments, **environment)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "manifest.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_survives_json(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"--config=configs/{path.name}" in module.__doc__
    mapping = module.get_config().to_dict()
    mapping["teacher"]["checkpoint"] = "a"
    if mapping["backend"]["name"] == "diffusers":
        mapping["backend"] |= {"base": "b", "control": "c"}
    settings = config.from_mapping(mapping)
    mapping = json.loads(json.dumps(config_lib.to_mapping(settings)))
    assert config.from_mapping(mapping) == settings


@pytest.mark.slow
def test_a_run_a_second_run_and_shards(tmp_path):
    done = generate("adverse_demo", tmp_path / "out", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:4] == ["night", "physical-night", "3", "3"]
    assert "images/s" in done.stderr and len(lines(tmp_path / "out")) == 6
    assert {line["backend"] for line in lines(tmp_path / "out")} == {
        "physical-night",
        "physical-fog",
    }
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").rglob("*.png")}
    again = generate("adverse_demo", tmp_path / "out", *SMALL)
    assert again.stdout == done.stdout and "images/s" not in again.stderr
    assert len(drawn) == 6 and all(path.stat().st_mtime_ns == at for path, at in drawn.items())

    for index in "01":
        array = {"SLURM_ARRAY_TASK_ID": index, "SLURM_ARRAY_TASK_COUNT": "2"}
        part = generate("adverse_demo", tmp_path / "parts", *SMALL, **array)
        assert part.returncode == 0 and f"shard {index}/2 is done" in part.stdout
        assert not (tmp_path / "parts/manifest.jsonl").exists()
    merged = generate("adverse_demo", tmp_path / "parts", *SMALL, "--merge")
    assert merged.stdout == done.stdout
    assert lines(tmp_path / "parts") == lines(tmp_path / "out")


def test_failed_images_set_the_exit_status(tmp_path):
    (tmp_path / "frames/image").mkdir(parents=True)
    (tmp_path / "frames/depth").mkdir()
    for number in range(2):
        image = np.full((16, 24, 3), 100, np.uint8)
        Image.fromarray(image).save(tmp_path / f"frames/image/f{number}.png")
        np.save(tmp_path / f"frames/depth/f{number}.npy", np.full((16, 24), 9, np.float32))
    (tmp_path / "frames/image/f1.png").write_bytes(b"no image")
    source = ("--config.source.name=folder", f"--config.source.root={tmp_path / 'frames'}")
    done = generate("adverse_demo", tmp_path / "out", *SMALL, *source)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "2 images failed (the first, f1: " in done.stderr.splitlines()[-1]
    assert [line["status"] for line in lines(tmp_path / "out")] == ["ok"] * 2 + ["failed"] * 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.conditions=('nihgt',)"], "nihgt"),
        (["--config.conditions=()"], "conditions is empty"),
        (["--config.labels=teacher"], "teacher.checkpoint is missing"),
        (["--config.teacher.checkpoint=nowhere"], "nowhere"),
        (["--config.source.root=nowhere"], "nowhere"),
        (["--config.backend.name=phisical"], "did you mean 'physical'"),
        (["--config.backend.name=diffusers"], "base is missing"),
        (["--config.variants=many"], "--config.variants=many"),
        (["--shard=3/2"], "shard is '3/2'"),
        (["--merge"], "contains no run"),
        (["--workdir="], "workdir"),
    ],
)
def test_a_mistake_is_a_one_line_error(tmp_path, arguments, message):
    done = generate("adverse_demo", tmp_path / "out", *SMALL, *arguments)
    assert done.returncode == 2 or "workdir" in message
    text = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert text.startswith("generate_adverse.py: error: ") and message in text
    assert not (tmp_path / "out/images").exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume(tmp_path):
    command = [sys.executable, "generate_adverse.py", "--config=configs/adverse_demo.py"]
    command += [f"--workdir={tmp_path / 'out'}", *SMALL, "--config.limit=60"]
    command.append("--config.variants=500")  # too many to finish before the signal
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=PROJECT)
    while not list((tmp_path / "out").glob("images/*/*.png")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate()
    assert process.returncode == 130
    assert "run the same command to resume" in text.splitlines()[-1]
