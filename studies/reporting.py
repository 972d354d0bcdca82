"""Shared by the studies' reports: the measured commit, and Markdown tables."""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def git(*arguments: str) -> str:
    """Output of a git command in this project, such as `git("rev-parse", "--short", "HEAD")`; empty
    on failure."""
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]], *, right: bool = False) -> str:
    """A table; with `right`, all columns but the first are right-aligned."""
    rule = ["---", *["---:" if right else "---"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
