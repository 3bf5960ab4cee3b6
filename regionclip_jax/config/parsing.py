"""From a config file's ``ConfigDict`` to frozen dataclasses, strictly."""

import dataclasses
import difflib
import types
import typing
from typing import Any

import ml_collections


class ConfigError(ValueError):
    """A recipe that cannot run, with the key and the remedy."""


# A whole number of at least 1.
Count = typing.NewType("Count", int)


Section = typing.TypeVar("Section")


def parse(section: type[Section], config: Any, where: str = "config") -> Section:
    """A section from a ``ConfigDict`` or dict, strictly.

    Raises:
        ConfigError: a key that does not exist (with the one that was probably meant), one that is
            missing, or a value of another type or none of a key's choices.
    """
    if not isinstance(config, ml_collections.ConfigDict | dict):
        raise ConfigError(f"{where}: expected a section with keys, found {config!r}")
    given = dict(config.items())
    fields = {field.name: field for field in dataclasses.fields(section)}
    for key in given:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {sorted(fields)}"
            raise ConfigError(f"{where}.{key}: no such key{hint}")
    missing = [name for name in fields if name not in given]
    if missing:
        raise ConfigError(f"{where}: missing {missing}; a recipe states every key")
    hints = typing.get_type_hints(section)
    values = {
        name: _convert(hints[name], value, f"{where}.{name}") for name, value in given.items()
    }
    return section(**values)


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return parse(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: {value!r} is none of {sorted(arguments)}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        variable = len(arguments) == 2 and arguments[1] is Ellipsis
        if not variable and len(value) != len(arguments):
            raise ConfigError(f"{where}: expected {len(arguments)} values, found {value!r}")
        kinds = [arguments[0]] * len(value) if variable else arguments
        return tuple(_convert(k, v, where) for k, v in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, ml_collections.ConfigDict | dict):
        return {str(k): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (bool, int, float, str) and type(value) is kind:
        return value
    if kind is Count and type(value) is int and value >= 1:
        return value
    expected = "a whole number of at least 1" if kind is Count else getattr(kind, "__name__", kind)
    raise ConfigError(f"{where}: expected {expected}, found {value!r}")


def as_plain(section: Any) -> dict:
    """A section as nested dicts of JSON values."""
    return dataclasses.asdict(section)
