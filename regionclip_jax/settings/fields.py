"""Base class and fields of the settings: choices, and permission to change on resume."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import tokenize
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

Choice = typing.TypeVar("Choice")


class UserError(ValueError):
    """Error whose message is complete for users; ``config_context`` leaves it as it is."""


class ConfigError(UserError):
    """Invalid recipe; the message has the key and the remedy."""


def choose(table: Mapping[str, Choice], name: str, key: str) -> Choice:
    """Return ``table[name]``, or raise a ConfigError that lists the choices."""
    if name not in table:
        raise ConfigError(f"{key}: {name!r} is none of {sorted(table)}")
    return table[name]


@contextlib.contextmanager
def config_context(key: str) -> Iterator[None]:
    """Add the config error context ``key``: report a ValueError within as an error of the recipe.

    Use it to build objects from settings, never around training, where a ValueError is a bug and
    keeps its traceback.

    Raises:
        ConfigError: instead of a ValueError that is not a ``UserError``.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error


# A whole number of at least 1.
Count = Annotated[int, "at least 1"]

_MAY_CHANGE = "may_change"


def may_change(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that a resumed run may change, because it does not affect the result.

    Examples are paths, log intervals, threads, memory and devices. All other fields must stay the
    same on resume.
    """
    return dataclasses.field(default=default, metadata={_MAY_CHANGE: True})


@dataclasses.dataclass(frozen=True)
class Section:
    """Base class of all settings; refuses values outside a field's choices."""

    def __post_init__(self):
        for name, choices in _choices(type(self)).items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"{name}: {value!r} is none of {sorted(choices)}")


@functools.cache
def _choices(section: type) -> dict[str, tuple]:
    hints = typing.get_type_hints(section)
    return {
        name: typing.get_args(kind)
        for name, kind in hints.items()
        if typing.get_origin(kind) is typing.Literal
    }


def as_plain(settings: Any) -> dict:
    """Return settings as nested dicts of JSON values."""
    return dataclasses.asdict(settings)


def fixed_on_resume(settings: Any) -> Any:
    """Return settings as nested dicts, without the fields that may change on resume."""
    if isinstance(settings, tuple):
        return [fixed_on_resume(value) for value in settings]
    if not dataclasses.is_dataclass(settings):
        return settings
    return {
        field.name: fixed_on_resume(getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if _MAY_CHANGE not in field.metadata
    }


@functools.cache
def meanings(section: type) -> dict[str, str]:
    """Return the comment above each field of a section, including inherited fields.

    The comments are the only description of a key: ``--describe`` prints them.
    """
    found = {}
    for owner in reversed(section.__mro__):
        if dataclasses.is_dataclass(owner):
            found |= _own_meanings(owner)
    return found


def _own_meanings(section: type) -> dict[str, str]:
    source = inspect.cleandoc(inspect.getsource(section))
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found, run = {}, []
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    nodes = {
        node.lineno: node.target.id
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    previous = None
    for line in range(1, source.count("\n") + 2):
        if line in nodes:
            # Consecutive fields without a comment between them share the comment above.
            previous = " ".join(run) if run else previous
            found[nodes[line]], run = previous or "", []
        elif line in comments:
            run.append(comments[line])
        elif not source.splitlines()[line - 1].strip():
            previous = None
    return found
