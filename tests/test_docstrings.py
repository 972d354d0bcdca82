"""Sections of docstrings look alike everywhere."""

import ast
import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"^( *)(?:Args|Returns|Raises|Attributes|Yields|Warns):\n( *)\S", re.M)


def docstrings(path: Path) -> list[str]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))
    return [text for node in nodes if (text := ast.get_docstring(node, clean=False))]


def test_sections_are_indented_by_four():
    folders = ("diffdepth_jax", "tools", "studies", "benchmarks", "configs")
    sections = [
        (str(path.relative_to(PROJECT)), header, item)
        for folder in folders
        for path in sorted((PROJECT / folder).rglob("*.py"))
        for text in docstrings(path)
        for header, item in SECTION.findall(text)
    ]
    assert len(sections) > 100
    wrong = [path for path, header, item in sections if len(item) != len(header) + 4]
    assert wrong == []
