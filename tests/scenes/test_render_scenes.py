"""The tool, run as a process on tiny frames."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mitsuba", reason="rendering needs the optional extra `render`")

PROJECT = Path(__file__).resolve().parents[2]


def run(output, *flags):
    command = [sys.executable, "tools/render_scenes.py", "--kind=street", "--size=16x48"]
    command += ["--samples=1", "--processes=1", f"--output={output}", *flags]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


def frames(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def test_seeded_resumable_and_split_by_layout(tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    sheet = tmp_path / "sheet.png"
    done = run(once, "--count=2", "--seed=4", f"--contact_sheet={sheet}")
    assert done.returncode == 0, done.stderr
    assert len(frames(once)) == 6
    with Image.open(sheet) as picture:
        assert picture.size == (3 * 48, 2 * 16)

    # In two goes, and with a lost frame made again: the same bytes.
    assert run(twice, "--count=1", "--seed=4").returncode == 0
    assert run(twice, "--count=2", "--seed=4").returncode == 0
    lost = next(twice.glob("raw/*/*/image_02/data/*.png"))
    lost.unlink()
    assert run(twice, "--count=2", "--seed=4").returncode == 0
    assert frames(once) == frames(twice)

    # Another split has other drives and other streets.
    assert run(once, "--count=1", "--seed=4", "--split=val").returncode == 0
    train, val = (
        {path.name for path in (once / "depth" / split).iterdir()} for split in ("train", "val")
    )
    assert len(train) == 2 and len(val) == 1 and not train & val
    images = [np.asarray(Image.open(p)) for p in sorted(once.glob("raw/*/*/image_02/data/*.png"))]
    assert all((a != b).any() for i, a in enumerate(images) for b in images[:i])

    # Other options may not be mixed in.
    mixed = run(once, "--count=3", "--seed=5")
    assert mixed.returncode != 0 and "other options" in mixed.stderr
    assert json.loads((once / "render.json").read_text())["seed"] == 4


def test_bad_flags_are_refused(tmp_path):
    for flag in ("--size=96", "--size=4x4", "--count=0", "--split=night"):
        failed = run(tmp_path / "out", flag)
        assert failed.returncode == 2 and flag.split("=")[1] in failed.stderr
    assert not (tmp_path / "out").exists()
