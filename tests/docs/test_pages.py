"""The code blocks of README.md, CONTRIBUTING.md and docs/, executed; see `runner.py`."""

import shutil
from pathlib import Path

import pytest

from tests import scripts
from tests.docs import stand_ins
from tests.docs.runner import EXECUTED, SHOWN, Runner, languages, not_run, write_commands

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted(PROJECT.glob("docs/**/*.md"))]
NAMES = [str(path.relative_to(PROJECT)) for path in PAGES]
WITH_CODE = [name for name in NAMES if EXECUTED & languages((PROJECT / name).read_text())]


@pytest.fixture(scope="session")
def server():
    with scripts.serving("tests.docs.small") as socket:
        yield socket


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """A folder with all stand-ins; every page gets a copy."""
    folder = tmp_path_factory.mktemp("clone")
    stand_ins.write(folder)
    return folder


@pytest.fixture
def runner(tmp_path, clone, server, monkeypatch):
    folder = tmp_path / "diffdepth_jax"
    shutil.copytree(clone, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return Runner(folder, write_commands(folder, server))


@pytest.mark.parametrize("name", WITH_CODE)
def test_every_block_of_a_page_works(name, runner):
    runner.run(PROJECT / name)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_has_a_known_language(name):
    found = {each for each in languages((PROJECT / name).read_text()) if not each.startswith("{")}
    assert found <= EXECUTED | SHOWN


def test_blocks_that_are_not_run_are_listed():
    text = (PROJECT / "docs" / "tested.md").read_text()
    rows = {line for line in text.splitlines() if line.startswith("| ")}
    found = {
        f"| `{name}` | {how} | {reason} |"
        for name in NAMES
        for how, reason in not_run((PROJECT / name).read_text())
    }
    assert found and found == {row for row in rows if row.startswith("| `")}
