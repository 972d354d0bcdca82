"""The wheel as installed by a user, outside the project's folder."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text())
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", "."]
    subprocess.run(command, check=True, cwd=PROJECT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder for PYTHONPATH; its `bin` has the console scripts."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", "--no-deps", f"--target={folder}", wheel], check=True)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Runs a console script in an empty folder."""

    def run_script(name, *arguments):
        return subprocess.run(
            [installed / "bin" / name, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(installed)},
        )

    return run_script


def test_the_wheel_holds_the_package_its_data_the_configs_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {
        path.relative_to(PROJECT).as_posix()
        for path in PROJECT.glob("diffdepth_jax/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    configs = {
        f"diffdepth_jax/{path.relative_to(PROJECT)}" for path in PROJECT.glob("configs/*.py")
    }
    assert {name for name in names if name.startswith("diffdepth_jax/")} == ours | configs
    assert {"diffdepth_jax/py.typed", "diffdepth_jax/adverse/prompts.toml"} < names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize("name", SETTINGS["project"]["scripts"])
def test_help_is_the_scripts_help(run, name):
    result = run(name, "--help")
    assert result.stdout.count(f"    {name} --") >= 2, result.stderr  # examples
    assert "python " not in result.stdout
    flag = "--checkpoint=" if name == "diffdepth-predict" else "--config="
    assert f"\n  {flag}" in result.stdout  # defined by the code that the scripts share
    assert re.fullmatch(r"diffdepth_jax [\d.]+\n", run(name, "--version").stdout)


def test_saved_depth_is_scored(run, tmp_path):
    """Reads a config, a data source and the page template, all from the wheel."""
    for split in ("train", "val"):
        for folder in ("image", "depth"):
            (tmp_path / split / folder).mkdir(parents=True)
        Image.new("RGB", (32, 16), (90, 120, 60)).save(tmp_path / split / "image/a.png")
        np.save(tmp_path / split / "depth/a.npy", np.full((16, 32), 4.0, np.float32))
    (tmp_path / "predicted").mkdir()
    np.save(tmp_path / "predicted/a.npy", np.full((16, 32), 5.0, np.float32))
    result = run(
        "diffdepth-evaluate",
        "--config=configs/custom.py",
        "--config.data.train.source.root=.",
        "--predictions=predicted",
        "--workdir=out",
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"abs_rel +0\.2500", result.stdout)
    assert (tmp_path / "out/report.html").is_file()


def test_a_config_that_the_package_lacks_is_reported(run, installed):
    result = run("diffdepth-train", "--config=configs/demmo.py", "--workdir=out")
    assert result.returncode == 2
    message = result.stderr.strip()
    assert message.startswith("diffdepth-train: error: ")  # without the script's folder
    assert "no file configs/demmo.py" in message
    assert message.endswith(str(installed / "diffdepth_jax" / "configs"))
