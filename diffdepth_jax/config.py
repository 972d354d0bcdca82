"""Converts nested mappings (ConfigDict, JSON) to frozen, validated dataclasses and back.

Experiments are written as `ml_collections.ConfigDict` (`configs/*.py`); everything below the
scripts only sees frozen dataclasses. A dataclass declares types by annotations and checks values in
`__post_init__`; `from_mapping` adds the field's path to error messages.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, cast

from diffdepth_jax.errors import ConfigError, did_you_mean

T = TypeVar("T")
Resolve = Callable[[str, str], Any]
_KIND = "kind"
_SHOWN = 200  # maximum length of a value in an error


def choice(kind: str, **options: Any) -> Any:
    """A dataclass field whose class is selected by `name` in its mapping.

    `resolve(kind, name)` must return an object with `Config` and, optionally, `VARIANTS`, a dict of
    predefined configs that `variant` in the mapping selects as the base.
    """
    return dataclasses.field(metadata={_KIND: kind}, **options)


def from_mapping(
    cls: type[T],
    mapping: Mapping[str, Any],
    *,
    resolve: Resolve | None = None,
    path: str = "config",
) -> T:
    """Builds the dataclass `cls` from a mapping, with strict checks.

    Args:
        cls: a dataclass; its annotations may use scalars, `X | None`, `Literal`, `tuple[X, Y]`,
          `tuple[X, ...]`, `dict[str, X]`, `Any` and other dataclasses.
        mapping: field names to values; nested mappings for nested dataclasses.
        resolve: `(kind, name) -> module`, for fields declared with `choice`.
        path: name of the mapping in errors.

    Raises:
        ConfigError: for an unknown key (with a suggestion), a missing field, a value that does not
          match its annotation, or one that the dataclass rejects.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path} must be a mapping of fields, not {_show(mapping)}")
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls)) if field.init}
    hints = typing.get_type_hints(cls)
    unknown = [key for key in mapping if key not in fields]
    if unknown:  # all at once, as another `name` can make several fields unknown
        raise ConfigError(
            "; ".join(f"{path}.{key} does not exist{did_you_mean(key, fields)}" for key in unknown)
        )
    values = {
        key: _value(hints[key], value, resolve, f"{path}.{key}", fields[key].metadata.get(_KIND))
        for key, value in mapping.items()
    }
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise ConfigError(f"{path}.{name} is missing")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def chosen(kind: str, mapping: Any, *, resolve: Resolve, path: str) -> Any:
    """Builds the config of the object named by `mapping["name"]`; see `choice`."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path} must be a mapping with a name, not {_show(mapping)}")
    values = dict(mapping)
    name, variant = values.get("name"), values.pop("variant", None)
    if name is None:
        raise ConfigError(f"{path}.name is missing: it selects the {kind}")
    try:
        module = resolve(kind, name)
    except ValueError as error:
        raise ConfigError(f"{path}.name: {error}") from error
    if variant is not None:
        variants = getattr(module, "VARIANTS", {})
        if variant not in variants:
            raise ConfigError(
                f"{path}.variant: the {kind} {name!r} has no variant "
                f"{variant!r}{did_you_mean(variant, variants)}"
            )
        base = to_mapping(variants[variant])
        given, values = values, _overlay(base, values)
        if base.keys() <= given.keys() and differences(base, values):
            raise ConfigError(
                f"{path}.variant: {variant!r} has no effect, because every field is given: leave "
                "out the variant, or the fields that it should set "
                f"({'; '.join(differences(base, values))})"
            )
    return from_mapping(module.Config, values, resolve=resolve, path=path)


def updated(config: T, values: Mapping[str, Any], *, resolve: Resolve, path: str) -> T:
    """A config with some fields replaced; nested mappings replace fields of nested configs.

    Raises:
        ConfigError: as in `from_mapping`.
    """
    if not values:
        return config
    mapping = _overlay(to_mapping(config), values)
    return from_mapping(type(config), mapping, resolve=resolve, path=path)


def to_mapping(config: Any) -> Any:
    """The JSON-compatible nested dict of a dataclass; `from_mapping` reads it back."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            field.name: to_mapping(getattr(config, field.name))
            for field in dataclasses.fields(config)
            if field.init
        }
    if isinstance(config, Mapping):
        return {key: to_mapping(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_mapping(value) for value in config]
    return config


def differences(one: Any, other: Any, path: str = "config") -> list[str]:
    """Differences between two nested dicts, as lines `path: one -> other`."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        lines = []
        for key in dict.fromkeys([*one, *other]):
            missing = "(absent)"
            lines += differences(one.get(key, missing), other.get(key, missing), f"{path}.{key}")
        return lines
    return [] if one == other else [f"{path}: {one!r} -> {other!r}"]


def _overlay(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated by `values`, recursively unless nested mappings have different `name`s."""
    result = dict(base)
    for key, value in values.items():
        old = result.get(key)
        result[key] = value
        if not isinstance(old, Mapping) or not isinstance(value, Mapping) or "variant" in value:
            continue
        if value.get("name", old.get("name")) == old.get("name"):
            result[key] = _overlay(old, value)
    return result


def _value(hint: Any, value: Any, resolve: Resolve | None, path: str, kind: str | None) -> Any:
    if kind is not None:
        if resolve is None:
            raise TypeError(f"{path} is selected by name: from_mapping needs `resolve`")
        return chosen(kind, value, resolve=resolve, path=path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        others = [argument for argument in arguments if argument is not type(None)]
        if len(others) == 1:
            return _value(others[0], value, resolve, path, None)
        for argument in others:
            try:
                return _value(argument, value, resolve, path, None)
            except ConfigError:
                continue
        raise _wrong_type(path, hint, value)
    if origin is Literal:
        # 2.0 equals 2, but is not a valid number of pixels.
        if not any(value == known and type(value) is type(known) for known in arguments):
            known = ", ".join(repr(argument) for argument in arguments)
            raise ConfigError(
                f"{path} is {_show(value)}; it must be one of {known}"
                f"{did_you_mean(value, arguments, listing=False)}"
            )
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, tuple | list):
            raise _wrong_type(path, hint, value)
        if len(arguments) == 2 and arguments[1] is ...:
            elements = [arguments[0]] * len(value)
        elif len(arguments) != len(value):
            raise ConfigError(f"{path} is {_show(value)}; it must have {len(arguments)} elements")
        else:
            elements = list(arguments)
        return tuple(
            _value(element, item, resolve, f"{path}[{index}]", None)
            for index, (element, item) in enumerate(zip(elements, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong_type(path, hint, value)
        return {
            key: _value(arguments[1], item, resolve, f"{path}.{key}", None)
            for key, item in value.items()
        }
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        return from_mapping(hint, value, resolve=resolve, path=path)
    # No library accepts more than 64 bits, and each reports that differently.
    if isinstance(value, int) and hint in (int, float) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{path} is {_show(value)}; it must fit into 64 bits")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{path} is nan; it must be a number")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _wrong_type(path, hint, value)
    return value


def _wrong_type(path: str, hint: Any, value: Any) -> ConfigError:
    name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return ConfigError(f"{path} is {_show(value)}; it must be {name}")


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python cannot convert an int of more than 4300 digits to text
        text = "a number of thousands of digits"
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}..."
    return f"{text} ({type(value).__name__})"
