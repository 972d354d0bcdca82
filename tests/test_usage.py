"""What --help and --version of every script and tool print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffdepth_jax

PROJECT = Path(__file__).resolve().parents[1]
SCRIPTS = ["train.py", "evaluate.py", "generate_adverse.py", "predict.py"]
TOOLS = sorted(f"tools/{path.name}" for path in (PROJECT / "tools").glob("*.py"))
LINES = 40  # that fit a screen
COLUMNS = 100
# Starts a script without JAX, as importing it takes seconds.
START = """
import runpy, sys
sys.modules["jax"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(*arguments):
    command = [sys.executable, "-c", START, *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS + TOOLS)
def test_help_fits_a_screen_and_has_examples(script):
    text = start(script, "--help")
    lines = text.splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= COLUMNS, text
    assert lines[0] and not lines[1]
    examples = [line for line in lines if line.startswith(f"    python {script} ")]
    assert len(examples) >= (2 if script in SCRIPTS else 1)
    assert lines[-1].endswith(f"{Path(script).name} --helpfull")
    # Every flag in the examples is explained, and none of absl's.
    flags = set(re.findall(r"^  (?:-\w+, )?--(?:\[no\])?(\w+)", text, re.MULTILINE))
    used = set(re.findall(r"--(\w+)=", "\n".join(lines[: lines.index("", 2)])))
    fields = {"root", "split", "layout", "depth_root"}  # of a source, for inspect_data.py
    assert used - fields <= flags
    assert "verbosity" not in text and "logtostderr" not in text


@pytest.mark.parametrize("script", ["evaluate.py", "tools/export.py"])
def test_full_help_has_the_whole_docstring_and_every_flag(script):
    text = start(script, "--helpfull")
    source = PROJECT / ("diffdepth_jax/scripts" if "/" not in script else "") / script
    assert source.read_text().split('"""')[1].strip() in text
    for name in re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", source.read_text()):
        assert re.search(rf"^  --(\[no\])?{name}\b", text, re.MULTILINE), name
    assert "--verbosity" in text
    assert max(map(len, text.splitlines())) <= COLUMNS


@pytest.mark.parametrize("script", ["predict.py", "tools/export.py", "tools/prepare_data.py"])
def test_version_is_name_and_number(script):
    assert start(script, "--version") == f"diffdepth_jax {diffdepth_jax.__version__}\n"


def test_short_help_is_the_same(tmp_path):
    assert (
        start("train.py", "-h") == start("train.py", "--helpshort") == start("train.py", "--help")
    )


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "--checkpoint, --input, --output must be given; --help shows how"),
        (["--input=a", "--output=b"], "--checkpoint must be given; --help shows how"),
        (
            ["--checkpoint=a", "--input=b", "--output=c:d", "--fov=60", "--intrinsics=e"],
            "At most one of (fov, intrinsics) must be given",
        ),
    ],
)
def test_each_missing_flag_is_named_once(arguments, says):
    command = [sys.executable, "predict.py", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"predict.py: error: {says}\n"
