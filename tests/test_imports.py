"""Importing a module of the package changes nothing that the whole process shares."""

import ast
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "diffdepth_jax"


def imported(node: ast.AST) -> Iterator[str]:
    """The import statements that run when a file is imported, not inside its functions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield ast.unparse(node)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


# Does what no module may do, to show that the test would notice.
RUDE = """
import logging, os, random, signal, warnings
import jax, matplotlib, numpy
from absl import flags

os.environ["RUDE"] = "1"
random.seed(0)
numpy.random.seed(0)
numpy.seterr(all="raise")
warnings.simplefilter("ignore")
logging.getLogger("jax").setLevel(logging.ERROR)
logging.getLogger("rude")
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
jax.config.update("jax_enable_x64", True)
matplotlib.rcParams["lines.linewidth"] = 7
flags.DEFINE_string("rude", None, "")
jax.devices()
"""
NOTICED = {
    "os.environ RUDE", "random", "numpy random", "numpy errors", "warnings", "logger jax",
    f"signal {int(signal.SIGUSR1)}", "jax.config jax_enable_x64", "matplotlib lines.linewidth",
    "flag rude", "jax devices in use",
}  # fmt: skip


def test_importing_any_module_changes_nothing_global(tmp_path):
    files = {
        ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    found = {each for path in files.values() for each in imported(ast.parse(path.read_text()))}
    first = sorted(each for each in found if PACKAGE.name not in each)
    (tmp_path / "rude.py").write_text(RUDE)
    done = subprocess.run(
        [sys.executable, "tests/global_state.py", json.dumps([*files, "rude"]), json.dumps(first)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": f"{PROJECT}{os.pathsep}{tmp_path}"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["changes"].pop("rude")) >= NOTICED
    assert result["changes"] == {}
    if not result["missing"]:
        assert result["not_imported"] == []
