"""The tool, in parts and as a process."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import ending
from diffdepth_jax.data.sources import Sample
from tests import scripts

PROJECT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("inspect_data", PROJECT / "tools/inspect_data.py")
tool = importlib.util.module_from_spec(SPEC)
sys.modules["inspect_data"] = tool  # dataclasses look up their module
SPEC.loader.exec_module(tool)


def sample(share: float, **others: object) -> Sample:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, (40, 60)) * (rng.uniform(size=(40, 60)) < share)
    return Sample(
        image=rng.integers(0, 256, (40, 60, 3), np.uint8),
        depth=depth.astype(np.float32),
        intrinsics=np.diag([50, 60, 1]).astype(np.float32),
        id="frame",
        condition="night",
        **others,
    )


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_the_nearest_depth_in_a_cell_is_drawn(share: float) -> None:
    depth = sample(share)["depth"]
    cells = (5, 6) if share < 0.3 else (10, 12)
    expected = np.zeros(cells, np.float32)
    for row in range(cells[0]):
        for column in range(cells[1]):
            height, width = 40 // cells[0], 60 // cells[1]
            cell = depth[row * height :, column * width :][:height, :width]
            expected[row, column] = min(cell[cell > 0], default=0)
    got = tool.nearest(depth, (10, 12))
    factor = 10 // cells[0]
    np.testing.assert_array_equal(got, expected.repeat(factor, axis=0).repeat(factor, axis=1))
    assert (got > 0).any()


def test_figures() -> None:
    frame = sample(0.5, tom_mask=np.arange(2400).reshape(40, 60) < 600, baseline=0.08)
    figures = tool.Figures.of(frame)
    known = frame["depth"][frame["depth"] > 0]
    assert figures.valid == known.size / 2400
    assert figures.depths == (known.min(), np.median(known), known.max())
    assert figures.focal == (50, 60) and figures.others["tom_mask"] == "25.0%"
    empty = sample(0.0)
    empty["intrinsics"] = np.full((3, 3), np.nan, np.float32)
    assert "valid 0.000%  no depth  no intrinsics" in tool.Figures.of(empty).line()
    lines = "\n".join(tool.report([figures, tool.Figures.of(empty)]))
    assert "sizes (height x width): 40x60 (2)" in lines and "night (2)" in lines
    assert "intrinsics: in 1 of 2 frames" in lines and "baseline: in 1 of 2 frames" in lines


def test_figures_of_relative_labels() -> None:
    label = np.linspace(-1, 3, 2400, dtype=np.float32).reshape(40, 60)
    label[:10] = np.nan
    frame = sample(0.5, relative_disparity=label)
    line = tool.Figures.of(frame).line()
    assert "valid 75.000%  no depth" in line and "relative_disparity 0.0004168 to 3" in line
    frame["relative_disparity"][:] = np.nan
    line = tool.Figures.of(frame).line()
    assert "valid 0.000%" in line and "all unknown" in line


def test_sheet() -> None:
    plain, more = sample(0.9), sample(0.01, clean_image=np.full((40, 60, 3), 7, np.uint8))
    more["tom_mask"] = np.ones((40, 60), bool)
    sheet = np.asarray(tool.contact_sheet([plain, more]))
    assert sheet.shape == (2 * (280 + tool.CAPTION), 5 * tool.PANEL, 3)
    clean = sheet[-280:, 3 * tool.PANEL : 4 * tool.PANEL]
    assert (clean == 7).all()
    assert (sheet[: 280 + tool.CAPTION, 3 * tool.PANEL :] == 0).all()  # the first has three


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return scripts.run("tools/inspect_data.py", *flags)


def test_as_a_process(tmp_path: Path) -> None:
    """The committed sample; and three frames of a user, one without a depth file."""
    roots = ("--root=sample/raw", "--depth_root=sample/depth", "--cameras=['image_02']")
    done = run("kitti", *roots, "--split=val", "--limit=3", f"--output={tmp_path / 'sheet.png'}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"kitti: 60 frames, 3 read\nmissing files: none\n", done.stdout)
    assert "intrinsics: in 3 of 3 frames" in done.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * tool.PANEL, 3 * (129 + tool.CAPTION))

    for name in "abc":
        for folder in ("image", "depth"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.ones((4, 6), np.uint16 if folder == "depth" else np.uint8)).save(
                tmp_path / folder / f"{name}.png"
            )
    (tmp_path / "depth/b.png").unlink()
    (tmp_path / "depth/c.png").write_bytes(b"nonsense")
    done = run("folder", f"--root={tmp_path}", "--depth_scale=1000")
    assert done.returncode == 1, done.stderr
    assert "folder: 3 frames, 3 read" in done.stdout
    assert re.search(r"missing files: 1 of 6 files .*depth/b", done.stdout)
    assert re.search(
        r"unreadable frames: 2\n.*b\..* does not exist.*\n.*c\.png cannot", done.stdout
    )


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (("nyuu",), ("'nyuu'", "did you mean 'nyu'")),
        (("nyu", "--rot=1"), ("nyu.rot", "did you mean 'root'")),
        (("nyu", "layout"), ("'layout'", "--field=value")),
        (("nyu", "--root=nowhere"), ("nowhere", "set root")),
        (("nyu", "--root=.", "--output=nowhere/sheet.png"), ("--output", "no folder nowhere")),
        (("nyu", "--root=.", "--output="), ("--output is empty",)),
        (("nyu", "--root=.", "--output=."), ("--output=.", "is a folder")),
    ],
)
def test_mistakes(
    flags: tuple[str, ...],
    facts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["inspect_data.py", *flags])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"), ending.one_line_errors():
        tool.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert all(fact in line for fact in facts), line
