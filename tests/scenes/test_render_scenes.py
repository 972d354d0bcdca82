"""The tool, run as a process on tiny frames."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import ending

pytest.importorskip("mitsuba", reason="rendering needs the optional extra `render`")

PROJECT = Path(__file__).resolve().parents[2]


def command(output, *flags):
    tool = [sys.executable, "tools/render_scenes.py", "--kind=street", "--size=16x48"]
    return [*tool, "--samples=1", "--processes=1", f"--output={output}", *flags]


def run(output, *flags):
    return subprocess.run(
        command(output, *flags), cwd=PROJECT, capture_output=True, text=True, check=False
    )


def files(root):
    return {
        path.relative_to(root): path.read_bytes() for path in root.rglob("*.*") if path.is_file()
    }


def test_seeded_resumable_and_split_by_layout(tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    sheet = tmp_path / "sheet.png"
    night = "--conditions=clear,night"
    done = run(once, "--count=2", "--seed=4", night, f"--contact_sheet={sheet}")
    assert done.returncode == 0, done.stderr
    pictures = sorted(once.rglob("image_02/data/*.png"))
    assert len(pictures) == 4 and len(list((once / "depth").rglob("*.png"))) == 4
    with Image.open(sheet) as picture:
        assert picture.width == 4 * 48 and picture.height > 2 * 16

    # In two runs, by condition, and with a lost frame made again: the same bytes.
    assert run(twice, "--count=1", "--seed=4", "--conditions=night").returncode == 0
    next(twice.glob("night/raw/*/*/image_02/data/*.png")).unlink()
    assert run(twice, "--count=2", "--seed=4", night).returncode == 0
    assert files(once) == files(twice)

    # A different split has different drives and streets.
    assert run(once, "--count=1", "--seed=4", "--split=test").returncode == 0
    train, test = (
        {path.name for path in (once / "depth" / split).iterdir()} for split in ("train", "test")
    )
    assert len(train) == 2 and len(test) == 1 and not train & test
    assert (once / "test.txt").read_text() == f"2000_01_01/{next(iter(test))} 5 l\n"
    images = [np.asarray(Image.open(p)) for p in sorted(once.rglob("image_02/data/*.png"))]
    assert all((a != b).any() for i, a in enumerate(images) for b in images[:i])

    # Different options must not be mixed.
    mixed = run(once, "--count=3", "--seed=5")
    assert mixed.returncode != 0 and "other options" in mixed.stderr
    assert json.loads((once / "render.json").read_text())["seed"] == 4


def test_nyu_layout_and_failing_lidar(tmp_path):
    nyu, kitti = tmp_path / "nyu", tmp_path / "kitti"
    assert run(nyu, "--count=1", "--layout=nyu", "--split=val").returncode == 0
    scene = "official_splits/val/street_3001"
    assert (nyu / "val.txt").read_text() == f"{scene}/rgb_00000.png {scene}/sync_depth_00000.png\n"
    assert run(kitti, "--count=1", "--conditions=fog", "--lidar_failures").returncode == 0
    (scan,) = (kitti / "fog").glob("depth/train/*/proj_depth/velodyne_raw/image_02/*.png")
    (truth,) = kitti.glob("depth/train/*/proj_depth/groundtruth/image_02/*.png")
    assert (np.asarray(Image.open(scan)) != np.asarray(Image.open(truth))).any()


def test_jpeg_pictures_are_resumed_and_listed(tmp_path):
    sheet = tmp_path / "sheet.png"
    flags = ("--image_format=jpg", "--layout=nyu", f"--contact_sheet={sheet}")
    assert run(tmp_path / "out", "--count=1", *flags).returncode == 0
    (first,) = (tmp_path / "out").glob("sync/*/rgb_00000.jpg")
    before = first.stat().st_mtime_ns
    assert run(tmp_path / "out", "--count=2", *flags).returncode == 0
    assert first.stat().st_mtime_ns == before and sheet.exists()
    scenes = [f"sync/street_{number:04d}" for number in (1, 2)]
    lines = [f"{scene}/rgb_00000.jpg {scene}/sync_depth_00000.png\n" for scene in scenes]
    assert (tmp_path / "out" / "train.txt").read_text() == "".join(lines)
    assert json.loads((tmp_path / "out" / "render.json").read_text())["image_format"] == "jpg"
    mixed = run(tmp_path / "out", "--layout=nyu")
    assert mixed.returncode != 0 and "other options" in mixed.stderr


def test_ctrl_c_says_how_to_resume(tmp_path):
    """Ctrl-C reaches all processes of a terminal; only the tool's own may print something."""
    tool = subprocess.Popen(
        command(tmp_path, "--count=3000"),
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    bar = ""
    while not re.search(r" [1-9]\d*/3000 ", bar):  # a frame is done
        bar += tool.stderr.read(1)
        assert tool.poll() is None, bar
    os.killpg(tool.pid, signal.SIGINT)
    _, errors = tool.communicate()
    *bar, last = errors.splitlines()
    assert (
        tool.returncode == 130
        and "interrupted" in last
        and "run the same command to resume" in last
    )
    assert "Traceback" not in errors and all("frame" in line for line in bar if line.strip())
    done = len(list(tmp_path.glob("raw/*/*/image_02/data/*.png")))
    assert 0 < done < 3000
    assert run(tmp_path, f"--count={done + 1}").returncode == 0


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs the tool in this process; returns what it prints when it refuses flags."""
    spec = importlib.util.spec_from_file_location("render_scenes", PROJECT / command("")[1])
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "render_scenes", tool)
    spec.loader.exec_module(tool)

    def run(output, *flags):
        monkeypatch.setattr(sys, "argv", command(output, *flags)[1:])
        with pytest.raises(SystemExit, match="2"), ending.one_line_errors():
            tool.main()
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "flag",
    [
        "--size=96",
        "--size=4x4",
        "--count=0",
        "--split=night",
        "--seed=-1",
        "--image_format=gif",
        "--samples=5",
        "--conditions=hail",
        "--contact_sheet=nowhere/sheet.png",
        "--contact_sheet=",
    ],
)
def test_bad_flags_are_refused(refused, tmp_path, flag):
    name, value = flag.split("=")
    message = refused(tmp_path / "out", flag)
    assert name in message and value.split("/")[0] in message
    assert not (tmp_path / "out").exists()


def test_bad_outputs_are_refused(refused, tmp_path):
    assert "there is no lidar" in refused(tmp_path / "out", "--layout=nyu", "--lidar_failures")
    (tmp_path / "file").touch()
    message = refused(tmp_path / "file" / "out")
    assert f"{tmp_path / 'file' / 'out'} cannot be written: Not a directory" in message
    assert "--output is empty" in refused("")
