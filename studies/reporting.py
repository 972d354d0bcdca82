"""What the studies' reports share: the commit that is measured, and tables in Markdown."""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def git(*arguments: str) -> str:
    """What git says of this project, such as `git("rev-parse", "--short", "HEAD")`; empty where it
    says nothing."""
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]], *, right: bool = False) -> str:
    """A table; with `right` all columns but the first are aligned to the right."""
    rule = ["---", *["---:" if right else "---"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
