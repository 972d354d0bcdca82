"""What `--help`, `--helpfull` and `--version` print.

`--help` fits a screen: the first line of the script's docstring, its examples (the indented lines
after it), and common flags in groups. `--helpfull` adds the rest of the docstring and all other
flags.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags

from diffdepth_jax import __version__

# Title of a group -> name of a flag -> what its value looks like ("" for a switch).
Groups = Mapping[str, Mapping[str, str]]

_WIDTH = 100  # columns
_INDENT = 27  # columns before the help of a flag
_BY_TYPE = {"string": "TEXT", "int": "N", "float": "NUMBER", "bool": "", "multi string": "TEXT"}
_EXAMPLES = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
# Added by absl to a flag's help.
_CHOICES = re.compile(r"^<[^>]*>: ")
_REPEAT = re.compile(r";\s+repeat this option to specify a list of values")
# absl's messages for missing or conflicting flags.
_MISSING = re.compile(r"flag --(\w+)=None: Flag --\1 must have a value other than None\.")
_ONE_OF = re.compile(
    r"flags .*: ((?:Exactly|At most) one of \(.*\)) must have a value other than None\."
)
_FULL = "--helpfull"


def define_flags(docstring: str, modules: Sequence[str], groups: Groups | None) -> None:
    """Defines `--help` (also `-h`), `--helpfull` and `--version`, which print and exit with 0.

    Args:
        docstring: the script's docstring.
        modules: modules whose flags belong to the script; absl's are only shown by --helpfull.
        groups: the common flags; None for all of the script's flags in one group.
    """
    app.define_help_flags()  # absl's flags, which are replaced below

    def common() -> str:
        shown = groups or {"Flags": _own_flags(modules)}
        lines = [_title(docstring), _examples(docstring), *_grouped(shown)]
        return "\n\n".join([*lines, f"Details and all flags: {_script()} {_FULL}"])

    def full() -> str:
        own = _own_flags(modules)
        shown: dict[str, Mapping[str, str]] = dict(groups or {"Flags": own})
        known = {name for group in shown.values() for name in group}
        shown["Other flags"] = {name: own[name] for name in own if name not in known}
        others = sorted(flags.FLAGS)
        shown["Flags of absl"] = {
            name: _placeholder(flags.FLAGS[name])
            for name in others
            if name not in own and len(name) > 1 and flags.FLAGS[name].help
        }
        return "\n\n".join([_as_started(docstring.strip()), *_grouped(shown)])

    for name, text, shows in (
        ("help", "Show the common flags.", common),
        ("helpshort", "The same as --help.", common),
        ("helpfull", "Show this.", full),
        ("version", "Show the version.", version),
    ):
        flags.DEFINE_flag(_Prints(name, text, shows, "h" if name == "help" else None))


class _Prints(flags.BooleanFlag):
    """A flag that prints a text and ends the program."""

    def __init__(self, name: str, help: str, shows: Callable[[], str], short_name: str | None):
        super().__init__(name, False, help, short_name, allow_override=True)
        self._shows = shows

    def parse(self, argument: Any) -> None:
        if self._parse(argument):
            _print_and_exit(self._shows())


def argument_parser(docstring: str) -> argparse.ArgumentParser:
    """A parser with the same `--help`, `--helpfull` and `--version` as `define_flags`.

    Args:
        docstring: the script's docstring.
    """
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=f"{_title(docstring)}\n\n{_examples(docstring)}",
        epilog=f"Details: {_script()} {_FULL}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=_INDENT, width=_WIDTH
        ),
    )

    class Full(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
            parser.description, parser.epilog = _as_started(docstring.strip()), None
            _print_and_exit(parser.format_help().rstrip())

    parser.add_argument(_FULL, action=Full, nargs=0, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=version(), help=argparse.SUPPRESS)
    return parser


def plainer(errors: Sequence[str]) -> str:
    """absl's message about flags, shortened to one line."""
    missing = [match[1] for match in map(_MISSING.fullmatch, errors) if match]
    others = [_ONE_OF.sub(r"\1 must be given", line) for line in errors]
    others = [line for line in others if not _MISSING.fullmatch(line)]
    if missing:
        names = ", ".join(f"--{name}" for name in missing)
        others.insert(0, f"{names} must be given; --help shows how")
    return ", ".join(others)


def version() -> str:
    """Name and version, in one line."""
    return f"diffdepth_jax {__version__}"


def _print_and_exit(text: str) -> NoReturn:
    print(text)
    sys.exit(0)


def _script() -> str:
    return Path(sys.argv[0]).name


def _title(docstring: str) -> str:
    return docstring.strip().partition("\n")[0]


def _examples(docstring: str) -> str:
    """The first indented paragraph of a docstring."""
    found = _EXAMPLES.search(docstring + "\n")
    return _as_started(found[0].strip("\n")) if found else ""


def _as_started(text: str) -> str:
    """Examples with the name under which this script was started, as installed scripts differ."""
    if Path(sys.argv[0]).suffix == ".py":
        return text
    module = sys.argv[0].rpartition("diffdepth-")[2].replace("-", "_")
    return text.replace(f"python {module}.py", _script())


def _own_flags(modules: Iterable[str]) -> dict[str, str]:
    """The flags defined by modules, without config fields; see `Groups`."""
    own = {}
    for module in modules:
        for flag in flags.FLAGS.get_key_flags_for_module(module):
            if "." not in flag.name and not isinstance(flag, _Prints):
                own[flag.name] = _placeholder(flag)
    return own


def _placeholder(flag: flags.Flag) -> str:
    if isinstance(flag, flags.EnumFlag):
        return "|".join(flag.parser.enum_values)
    if flag.boolean:
        return ""
    return _BY_TYPE.get(flag.flag_type(), "VALUE")


def _grouped(groups: Groups) -> list[str]:
    """One paragraph per group."""
    return [
        "\n".join([f"{title}:", *(_described(*item) for item in group.items())])
        for title, group in groups.items()
        if group
    ]


def _described(name: str, value: str) -> str:
    flag = flags.FLAGS[name]
    usual = flag.default
    text = _REPEAT.sub(" Can be repeated.", _CHOICES.sub("", flag.help))
    if usual is not None and usual is not False and usual != []:
        text += f" [default: {str(flag.default_as_str).strip(chr(39))}]"
    # A switch that is on by default can be switched off.
    begin = "  --" + ("[no]" if flag.boolean and usual is not False else "") + name
    begin += f"={value}" if value else ""
    lines = textwrap.wrap(text, _WIDTH - _INDENT)
    if len(begin) + 2 > _INDENT:
        lines.insert(0, "")
    lines = [begin.ljust(_INDENT) + lines[0], *(" " * _INDENT + line for line in lines[1:])]
    return "\n".join(line.rstrip() for line in lines)
