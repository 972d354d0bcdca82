"""Statements in the project's files that can go out of date."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import diffdepth_jax

PROJECT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def pins(*files):
    """Package -> version, from the requirements files."""
    lines = [
        line.split("#")[0] for file in files for line in (PROJECT / file).read_text().split("\n")
    ]
    parsed = [Requirement(line) for line in lines if line.strip()]
    return {each.name.lower(): next(iter(each.specifier)).version for each in parsed}


@pytest.mark.parametrize(
    "declared, files",
    [
        (SETTINGS["dependencies"], ["requirements.txt"]),
        (SETTINGS["optional-dependencies"]["dev"], ["requirements-dev.txt"]),
    ],
    ids=["dependencies", "dev"],
)
def test_every_dependency_has_a_tested_version_within_bounds(declared, files):
    tested = pins(*files)
    for requirement in map(Requirement, declared):
        assert tested[requirement.name.lower()] in requirement.specifier, requirement
        assert all(bound.operator == ">=" for bound in requirement.specifier)


def test_the_page_is_tested_within_the_bounds_of_its_extra():
    (requirement,) = map(Requirement, SETTINGS["optional-dependencies"]["app"])
    tested = pins("requirements-app.txt")
    assert tested[requirement.name] in requirement.specifier
    (pillow,) = (
        each for each in map(Requirement, SETTINGS["dependencies"]) if each.name == "pillow"
    )
    assert tested["pillow"] in pillow.specifier  # older than in requirements.txt


def test_the_citation_has_this_version_and_licence():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert citation["version"] == diffdepth_jax.__version__
    assert citation["license"] == SETTINGS["license"]
    assert len(citation["references"]) == 2


def test_the_workflow_runs_every_declared_python():
    text = (PROJECT / ".github/workflows/test.yml").read_text()
    declared = [line.split()[-1] for line in SETTINGS["classifiers"] if ":: Python ::" in line]
    assert yaml.safe_load(text)["jobs"]["pins"]["strategy"]["matrix"]["python"] == declared
    makefile = (PROJECT / "Makefile").read_text()
    for target in re.findall(r"run: make (\S+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_hooks_run_the_same_as_lint():
    hooks = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    commands = {line.split("/")[1].split()[0] for line in lint[1].splitlines()}
    assert commands <= {hook["entry"].removeprefix(".venv/bin/").split()[0] for hook in hooks}


def test_paths_named_for_contributors_exist():
    text = (PROJECT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"\b(?:diffdepth_jax|tests|tools)/[\w/.]+\.\w+", text)
    assert len(paths) > 10
    assert [path for path in paths if "NAME" not in path and not (PROJECT / path).is_file()] == []
