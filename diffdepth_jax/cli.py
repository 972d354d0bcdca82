"""What the scripts share: `--config=FILE --config.key=value`, and user errors in one line."""

import ast
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from diffdepth_jax.errors import UserError


class _LiteralParser(flags.ArgumentParser):
    """Reads a number, tuple or None; anything else is a string."""

    def parse(self, argument: Any) -> Any:
        try:
            return ast.literal_eval(argument) if isinstance(argument, str) else argument
        except (SyntaxError, ValueError):
            return argument


# A field that a config file leaves at None can be set too; what fits there is known, and checked,
# where the config becomes a dataclass.
config_flags.register_flag_parser_for_type(type(None), _LiteralParser())


def define_config(*, required: bool = True) -> flags.FlagHolder:
    """Defines `--config=FILE` and `--config.key=value` for every key.

    Keys that the file does not mention are accepted here, as a field may keep its default: whether
    such a field exists is judged once, by `config.from_mapping`, before any work.
    """
    holder = config_flags.DEFINE_config_file(
        "config",
        help_string="A file of configs/, changed by --config.key=value.",
        lock_config=False,
        accept_new_attributes=True,
    )
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

    Where the command line names another protocol than the file, the file's options of its own
    protocol are left out: a crop of KITTI's says nothing about NYU.

    Args:
      holder: what `define_config` returned.
      evaluation: fields of `config.evaluation` that flags of their own give.
    """
    from diffdepth_jax.evaluation import protocols

    config = holder.value.to_dict()
    options = config.get("evaluation", {})
    overrides = config_flags.get_override_values(flag_values[holder.name])
    given = {name: options[name] for name in options if f"evaluation.{name}" in overrides}
    given |= evaluation or {}
    protocol = options.get("protocol")
    if "evaluation.protocol" in overrides:  # The flag's default is what the file says.
        protocol = flag_values[f"{holder.name}.evaluation.protocol"].default
    if given.get("protocol", protocol) != protocol:
        options = {name: options[name] for name in options if name not in protocols.OPTIONS}
    return config | {"evaluation": options | given}


def require_with(name: str, *others: str) -> None:
    """Refuses `--name` unless all the other flags are given too."""
    goes_with = ", ".join(f"--{other}" for other in others)
    flags.register_multi_flags_validator(
        [name, *others],
        lambda values: values[name] is None or None not in values.values(),
        f"--{name} goes with {goes_with}",
    )


def run(main: Callable[[list[str]], Any]) -> None:
    """`absl.app.run`; a `UserError` becomes one line on stderr and exit status 2.

    Any other exception is a fault of the program and keeps its traceback; `--verbosity=1` shows
    that of user errors too.

    Args:
      main: is given the rest of the command line.
    """

    def parse(arguments: list[str]) -> list[str]:
        try:
            remaining = flags.FLAGS(arguments)
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
            # ml_collections raises KeyError("'modle'\nDid you mean ...") and the like.
            message = str(error.args[0] if error.args else error)
            if isinstance(error, KeyError) and "\n" not in message:
                message = f"the config file has no group {message}"
            if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
                given = flags.FLAGS["config"]
                # absl puts the flags concerned before what a check says: a whole config among them.
                message = message.replace(str(given.value), str(given.config_filename))
            _stop(", ".join(line.strip() for line in message.splitlines()))
        config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
        if config is not None and not isinstance(config, ConfigDict):
            _stop(f"--config: there is no file {flags.FLAGS['config'].config_filename}")
        if len(remaining) > 1:
            _stop(f"{remaining[1]!r} is not a flag; flags are written --name=value")
        return remaining

    def guarded(arguments: list[str]) -> Any:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells every stage of every save.
        try:
            return main(arguments)
        except UserError as error:
            if logging.get_verbosity() >= logging.DEBUG:
                raise
            _stop(str(error))

    app.run(guarded, flags_parser=parse)


def _stop(message: str) -> None:
    print(f"{sys.argv[0]}: error: {message}", file=sys.stderr)
    sys.exit(2)
