"""Sphinx: `make docs` builds the site into docs/_build, without the network."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import diffdepth_jax

project = "diffdepth_jax"
version = release = diffdepth_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.programoutput",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "diffdepth_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

myst_enable_extensions = ["attrs_block", "colon_fence"]
myst_heading_anchors = 3  # so that results.md#few-steps works, as on a code host

default_role = "code"  # Docstrings write `name`, as Markdown does.
autodoc_default_options = {"members": True, "member-order": "bysource", "exclude-members": "setup"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autoclass_content = "class"
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # An attribute that has both a docstring and an entry is shown once.
python_display_short_literal_types = True
python_maximum_signature_line_length = 88

# For the pages that show --help.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["COLUMNS"] = "90"

_COLON = "\ue000"  # a character that no docstring contains
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
_SEVERAL = re.compile(r"(?P<indent> +)(?P<names>\w+(, \w+)+):(?P<rest> .*)")
_OUTSIDE_CODE = re.compile(r"(?P<code>`[^`]*`)(?P<suffix>\w?)|(?P<special>[|*])")


def as_restructured_text(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Converts from Markdown: indented lines are literal, a bar or a star outside backticks is
    plain text, and an entry "prediction, target: metres" becomes two."""
    result: list[str] = []
    in_section = is_literal = False
    for number, line in enumerate(lines):
        if line and not line[0].isspace():
            in_section, is_literal = bool(_SECTION.match(line)), False
        before = [text for text in lines[:number] if text.strip()]
        after_blank = number == 0 or not lines[number - 1].strip()
        if not in_section and not is_literal and after_blank and line.startswith("    "):
            result += [] if before and before[-1].endswith("::") else ["::", ""]
            is_literal = True
        result.append(line if is_literal else _escaped(line))
    lines[:] = _one_name_each(result)
    if what in ("property", "attribute"):  # "What predictions hold: metres" is not a type.
        lines[:] = [line.replace(":", _COLON) for line in lines]


def with_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def _escaped(line: str) -> str:
    if re.match(r" +\*+\w+:", line):
        return line  # `**fields:` among the arguments is napoleon's.

    def escape(found: re.Match[str]) -> str:
        if found["special"]:
            return f"\\{found['special']}"
        return found["code"] + (f"\\ {found['suffix']}" if found["suffix"] else "")

    return _OUTSIDE_CODE.sub(escape, line)


def _one_name_each(lines: list[str]) -> list[str]:
    result: list[str] = []
    in_section = False
    for number, line in enumerate(lines):
        if line and not line[0].isspace():
            in_section = bool(_SECTION.match(line))
        found = _SEVERAL.match(line)
        if not found or not in_section:
            result.append(line)
            continue
        following = []
        for text in lines[number + 1 :]:
            if not text.startswith(found["indent"] + " "):
                break
            following.append(text)
        for name in found["names"].split(", ")[:-1]:
            result += [f"{found['indent']}{name}:{found['rest']}", *following]
        result.append(f"{found['indent']}{found['names'].split(', ')[-1]}:{found['rest']}")
    return result


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", with_colons, priority=600)  # after it
