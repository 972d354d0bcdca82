"""Executes the code blocks of a Markdown page, one after another, as a reader would.

Python blocks share one namespace. `sh` blocks are run by Bash, where `python` and the like are
`command_client.py`. Commands in YAML are parsed, and TOML is written to the file named in its first
line. A comment before a block says what is done instead, and why:

    <!-- parse only: REASON -->       flags and config fields are checked, nothing is run
    <!-- skip: next "REASON" -->      nothing is done
"""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
import tomllib
import unittest
from collections.abc import Iterator
from pathlib import Path

import yaml
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

HERE = Path(__file__).parent
FENCE = re.compile(r"^ *(`{3,}|~{3,}|:{3,})(?P<info>.*)$", re.MULTILINE)
NOT_RUN = re.compile(r'<!-- (?P<how>parse only: |skip: next ")(?P<reason>.*?)"? -->\s*')
EXECUTED = {"python", "sh", "yaml", "toml"}
SHOWN = {"text", "bibtex"}  # output, folder layouts: nothing to execute
PYTHON_LIKE = ("python", ".venv/bin/python", "diffdepth-train", "diffdepth-evaluate")
PYTHON_LIKE += ("diffdepth-predict", "diffdepth-generate-adverse")


def not_run(text: str) -> Iterator[tuple[str, str]]:
    """The blocks of a page that are not run, as ("skip" or "parse only", reason)."""
    for match in NOT_RUN.finditer(text):
        yield match["how"].split(":")[0], match["reason"]


def languages(text: str) -> set[str]:
    """The languages of a page's fences, and MyST directives as "{name}"."""
    infos = [match["info"].strip() for match in FENCE.finditer(text)]
    return {info.split()[0] for info in infos if info}


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs blocks in a folder.

    Attributes:
        folder: has the stand-ins, and `bin` from `write_commands`.
        environment: that of the shell blocks.
    """

    folder: Path
    environment: dict[str, str]

    def run(self, page: Path) -> None:
        """Executes all blocks of a page.

        Raises:
            AssertionError: a block failed; the message names the page and the line.
        """
        parsers = (
            PythonCodeBlockParser(),
            CodeBlockParser("sh", self._shell),
            CodeBlockParser("yaml", self._yaml),
            CodeBlockParser("toml", self._toml),
            SkipParser(),
        )
        for example in Document.parse(str(page), *parsers).examples():
            try:
                example.evaluate()
            except unittest.SkipTest:
                continue

    def _shell(self, example: Example) -> None:
        before = example.document.text[: example.start]
        comments = list(NOT_RUN.finditer(before))
        only = comments and comments[-1].end() == len(before)
        self._bash(example, example.parsed, parse_only=bool(only))

    def _yaml(self, example: Example) -> None:
        for command in _commands(yaml.safe_load(example.parsed)):
            self._bash(example, shlex.join(command), parse_only=True)

    def _toml(self, example: Example) -> None:
        """Writes the file that the first line names, as in "# prompts.toml"."""
        tomllib.loads(example.parsed)
        (self.folder / example.parsed.split()[1]).write_text(example.parsed)

    def _bash(self, example: Example, code: str, *, parse_only: bool) -> None:
        environment = self.environment | ({"DOCS_PARSE_ONLY": "1"} if parse_only else {})
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        where = f"{example.path}:{example.line}"
        assert done.returncode == 0, f"{where}: exit status {done.returncode}\n{done.stderr}"


def _commands(content: object) -> Iterator[list[str]]:
    """The lists under `command:` anywhere in a YAML file."""
    if isinstance(content, dict):
        if "command" in content:
            yield content["command"]
        content = list(content.values())
    if isinstance(content, list):
        for each in content:
            yield from _commands(each)


def write_commands(folder: Path, socket: str) -> dict[str, str]:
    """Writes commands into `folder/bin` and `folder/.venv`; returns the environment to use them.

    `python` and the installed scripts go to the server, `make` checks that the target exists, and
    launchers run their command once.
    """
    binaries = folder / "bin"
    binaries.mkdir()
    client = f"exec {sys.executable} -IS {HERE / 'command_client.py'}"
    for name in PYTHON_LIKE:
        path = folder / name if name.startswith(".") else binaries / name
        script = ""
        if name.startswith("diffdepth-"):
            module = name.removeprefix("diffdepth-").replace("-", "_")
            script = f"-m diffdepth_jax.scripts.{module} "
        _write_script(path, f'{client} {script}"$@"')
    _write_script(binaries / "make", 'exec /usr/bin/env -S PATH="$DOCS_PATH" make --dry-run "$@"')
    for name in ("srun", "mpirun"):
        _write_script(
            binaries / name,
            'while [[ $1 != python && $1 != bash ]]; do shift; done; exec "$@"',
        )
    path = os.environ["PATH"]
    return dict(os.environ) | {
        "PATH": f"{binaries}{os.pathsep}{path}",
        "DOCS_PATH": path,
        "DOCS_SERVER": socket,
        "HOME": str(folder),
    }


def _write_script(path: Path, code: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{code}\n")
    path.chmod(0o755)
