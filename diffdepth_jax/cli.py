"""Shared by the scripts: flags, such as `--config=FILE --config.key=value`, and start-up.

`usage` defines what `--help` prints, and `ending` how a script ends.
"""

import ast
import importlib.machinery
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

from diffdepth_jax import ending, usage
from diffdepth_jax.errors import ConfigError, FileError, MissingFileError, UserError, naming_file


class _LiteralParser(flags.ArgumentParser):
    """Reads a number, tuple or None; anything else is a string."""

    def parse(self, argument: Any) -> Any:
        try:
            return ast.literal_eval(argument) if isinstance(argument, str) else argument
        except (SyntaxError, ValueError, RecursionError):
            return argument


class _TupleParser(flags.ArgumentParser):
    """Reads a tuple. Not a subclass of ml_collections' parser, which joins tuples given twice."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        return tuple_parser.TupleParser().parse(argument)


class _ConfigFileParser(flags.ArgumentParser):
    """Runs a config file; errors in it are reported with file and line."""

    def parse(self, path: Any) -> ConfigDict:
        name, *argument = path.split(":", 1)
        if not name:
            raise ConfigError("is empty: name a file, for example from configs/")
        with naming_file(name, "read"):
            if not os.path.lexists(name):
                name = _shipped_config(name)
            Path(name).open("rb").close()
        loader = importlib.machinery.SourceFileLoader("config", name)
        spec = importlib.util.spec_from_loader("config", loader)  # any suffix
        module = importlib.util.module_from_spec(cast(importlib.machinery.ModuleSpec, spec))
        try:
            loader.exec_module(module)
            if not hasattr(module, "get_config"):
                raise ConfigError(f"{name} is not a config: it has no function get_config")
            config = module.get_config(*argument)
        except UserError:
            raise
        except Exception as error:  # user code may raise anything
            line = _last_line(name, error.__traceback__, error)
            raise ConfigError(
                f"the config {name} cannot be run: {line}{type(error).__name__}: {error}"
            ) from error
        if not isinstance(config, ConfigDict):
            raise ConfigError(
                f"{name}: get_config returns {type(config).__name__}; it must be a ConfigDict"
            )
        return config


def _shipped_config(name: str) -> str:
    """The file `configs/NAME.py` included in the package, for users in another folder.

    Raises:
        MissingFileError: if there is none, or `name` is any other path.
    """
    folder, _, file = name.rpartition("/")
    if folder != "configs":
        raise MissingFileError(f"there is no file {name}")
    package = Path(__file__).parent
    # Wheels have them inside the package, checkouts next to it.
    shipped = next(path for path in (package / folder, package.parent / folder) if path.is_dir())
    if not (shipped / file).is_file():
        raise MissingFileError(
            f"there is no file {name}, and none with that name in the package's {shipped}"
        )
    return str(shipped / file)


def _last_line(name: str, trace: TracebackType | None, error: Exception) -> str:
    """The line of a file that an error came from, as "line 7: "."""
    if isinstance(error, SyntaxError) and error.filename == name:
        return ""  # its message already names the line
    lines = [frame.lineno for frame in traceback.extract_tb(trace) if frame.filename == name]
    return f"line {lines[-1]}: " if lines else ""


def define_config(*, required: bool = True) -> flags.FlagHolder:
    """Defines `--config=FILE` and `--config.key=value` for every key.

    Keys that are not in the file are accepted here, as the file may leave fields at their defaults;
    `config.from_mapping` checks that all fields exist, before any work.
    """
    # Fields that are None in the config file can be set too; their values are checked when the
    # config becomes a dataclass.
    config_flags.register_flag_parser_for_type(type(None), _LiteralParser())
    config_flags.register_flag_parser_for_type(tuple, _TupleParser())
    holder = config_flags.DEFINE_config_file(
        "config",
        help_string="A file from configs/ or your own; --config.FIELD=VALUE overrides a field.",
        lock_config=False,
        accept_new_attributes=True,
    )
    flags.FLAGS["config"].parser = _ConfigFileParser()
    if required:
        flags.mark_flag_as_required("config")
    return holder


def mapping(
    holder: flags.FlagHolder,
    evaluation: Mapping[str, Any] | None = None,
    *,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> dict[str, Any]:
    """The config as nested dicts.

    If the command line selects another protocol than the file, the file's protocol options are
    dropped: a crop for KITTI does not apply to NYU. The same holds for the fields of a source, see
    `chosen_mapping`.

    Args:
        holder: the result of `define_config`.
        evaluation: fields of `config.evaluation` that are set by separate flags.
    """
    from diffdepth_jax.evaluation import protocols

    config = chosen_mapping(holder, "data.train.source", "data.evaluation", flag_values=flag_values)
    options = config.get("evaluation", {})
    overrides = config_flags.get_override_values(flag_values[holder.name])
    given = {name: options[name] for name in options if f"evaluation.{name}" in overrides}
    given |= evaluation or {}
    protocol = options.get("protocol")
    if "evaluation.protocol" in overrides:  # the flag's default is the file's value
        protocol = flag_values[f"{holder.name}.evaluation.protocol"].default
    if given.get("protocol", protocol) != protocol:
        of_protocol = (*protocols.OPTIONS, *protocols.MEASURING)
        options = {name: options[name] for name in options if name not in of_protocol}
    return config | {"evaluation": options | given}


def chosen_mapping(
    holder: flags.FlagHolder, *groups: str, flag_values: flags.FlagValues = flags.FLAGS
) -> dict[str, Any]:
    """The config as nested dicts.

    If the command line gives a group another `name` than the file, the file's other fields in the
    group are dropped: fields of one data set do not apply to another.

    Args:
        holder: the result of `define_config`.
        groups: groups whose `name` determines their fields, such as `data.train.source`.
    """
    config = holder.value.to_dict()
    overrides = config_flags.get_override_values(flag_values[holder.name])
    for group in groups:
        *path, last = group.split(".")
        parent: Any = config
        for part in path:
            parent = parent.get(part) or {}
        fields = parent.get(last)
        if not isinstance(fields, Mapping) or f"{group}.name" not in overrides:
            continue
        # the flag's default is the file's value
        if flag_values[f"{holder.name}.{group}.name"].default != fields["name"]:
            given = (name for name in fields if f"{group}.{name}" in overrides)
            parent[last] = {name: fields[name] for name in given}
    return config


def require_with(name: str, *others: str) -> None:
    """Rejects `--name` unless all the other flags are given too."""
    goes_with = ", ".join(f"--{other}" for other in others)
    flags.register_multi_flags_validator(
        [name, *others],
        lambda values: values[name] in (None, []) or None not in values.values(),
        f"--{name} needs {goes_with}",
    )


def define_directory(name: str, help_string: str) -> flags.FlagHolder:
    """Defines `--name=DIRECTORY`, which may be absent but not empty; see `directory`."""
    holder = flags.DEFINE_string(name, None, help_string)
    flags.register_validator(name, lambda text: text is None or bool(text.strip()), _EMPTY)
    return holder


def directory(flag: str, text: str) -> Path:
    """The directory given by a flag; for scripts that use argparse.

    Raises:
        ConfigError: if it is empty, which Python would treat as the current directory.
    """
    if not text.strip():
        raise ConfigError(f"{flag} {_EMPTY}")
    return Path(text).expanduser()


_EMPTY = "is empty: name a directory, or . for the current one"


def output_file(flag: str, text: str) -> Path:
    """The output file given by a flag, checked before a script's work.

    Raises:
        ConfigError: if it is empty.
        FileError: if its folder does not exist (`MissingFileError`), or it is a folder itself.
    """
    if not text.strip():
        raise ConfigError(f"{flag} is empty: name a file")
    path = Path(text).expanduser()
    with naming_file(path, "written"):
        if not path.parent.is_dir():
            raise MissingFileError(
                f"{flag}={text}: there is no folder {path.parent}; create it first"
            )
        if path.is_dir():
            raise FileError(f"{flag}={text} is a folder; name a file in it")
    return path


def fields(words: Sequence[str]) -> dict[str, Any]:
    """A mapping from `--field=value` words; values are parsed as Python if possible.

    Raises:
        ConfigError: if a word has a different form.
    """
    values = {}
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not equals:
            raise ConfigError(f"{word!r} is not a field of the source: write --field=value")
        values[name] = _LiteralParser().parse(text)
    return values


def define_processes() -> None:
    """Defines the flags that `processes` reads."""
    flags.DEFINE_string(
        "coordinator", None, "Where the first process listens, if the cluster does not provide it."
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes that train together.")
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")


def processes() -> dict[str, Any]:
    """Arguments of `training.distributed.start`, from the flags of `define_processes`."""
    return {name: flags.FLAGS[name].value for name in _PROCESSES}


_PROCESSES = ("coordinator", "num_processes", "process_id")


def define_size(name: str, help_string: str) -> None:
    """Defines `--name=HEIGHTxWIDTH`, which may be absent; see `size`."""
    flags.DEFINE_string(name, None, help_string)
    flags.register_validator(
        name,
        lambda text: text is None or re.fullmatch(r"[1-9]\d*x[1-9]\d*", text),
        "a size must be HEIGHTxWIDTH, for example 352x1216",
    )


def size(text: str) -> tuple[int, int]:
    """Height and width from a flag of `define_size`."""
    height, width = map(int, text.split("x"))
    return height, width


# The flags of `define_checkpoint` in groups of `--help`.
CHECKPOINT = {"checkpoint": "PATH", "network": "NAME", "field": "NAME=VALUE"}


def define_checkpoint(*, several: bool = False) -> None:
    """Defines --checkpoint, optionally repeatable, and the flags that `model_options` reads."""
    kinds = "A run, a transformers folder, or a .pt or .safetensors file."
    if several:
        flags.DEFINE_multi_string("checkpoint", [], kinds)
    else:
        flags.DEFINE_string("checkpoint", None, kinds)
    flags.DEFINE_string(
        "network", None, "Network, if the checkpoint does not determine it: depth_anything, ..."
    )
    flags.DEFINE_multi_string(
        "field", [], "Config field that the checkpoint lacks, such as version=2."
    )
    flags.register_validator(
        "field",
        lambda words: all(re.match(r"[a-z]\w*=", word) for word in words),
        "is not a model field: write --field=NAME=VALUE",
    )


def model_options() -> dict[str, Any]:
    """Arguments of `inference.load` except the checkpoint, from `define_checkpoint`'s flags."""
    words = (word.split("=", 1) for word in flags.FLAGS.field)
    values = {name: _LiteralParser().parse(text) for name, text in words}
    return {"network": flags.FLAGS.network, **values}


def run(main: Callable[[list[str]], Any], groups: usage.Groups | None = None) -> None:
    """`absl.app.run` within `ending.one_line_errors`.

    `--verbosity=1` also shows tracebacks of user errors. `--help` shows the docstring and flags
    of the module that defines `main`, and the flags defined here; see `usage`.

    Args:
        main: called with the rest of the command line.
        groups: flags shown by `--help`; None for all.
    """
    docstring = sys.modules[main.__module__].__doc__ or ""
    usage.define_flags(docstring, (__name__, main.__module__), groups)

    def parse(arguments: list[str]) -> list[str]:
        try:
            remaining = flags.FLAGS(arguments)
        except UserError as error:
            ending.stop(f"--config: {error}")
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error.__context__, ConfigError):  # absl wraps it in another error
                ending.stop(f"--config: {error.__context__}")
            # ml_collections raises KeyError("'modle'\nDid you mean ...") and the like.
            message = str(error.args[0] if error.args else error)
            if isinstance(error, KeyError) and "\n" not in message:
                message = f"the config file has no group {message}"
            if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
                given: Any = flags.FLAGS["config"]
                # absl puts the affected flags before a check's message, including a whole config.
                message = message.replace(str(given.value), str(given.config_filename))
            ending.stop(usage.plainer([line.strip() for line in message.splitlines()]))
        for name, value in flags.FLAGS.flag_values_dict().items():
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                ending.stop(f"--{name} is {value}; it must fit into 64 bits")
        if len(remaining) > 1:
            ending.stop(f"{remaining[1]!r} is not a flag; write flags as --name=value")
        return remaining

    def guarded(arguments: list[str]) -> Any:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax logs every stage of every save
        return main(arguments)

    with ending.one_line_errors():
        app.run(guarded, flags_parser=parse)
