"""Base class and fields of the settings: choices, and permission to change on resume."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import numbers
import textwrap
import tokenize
import types
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


_LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that a field accepts; NaN is never in a range.

    Args:
        low: smallest number.
        high: largest number.
        above: exclude ``low``.
        noun: names the numbers in errors.
    """

    low: float
    high: float = _LARGEST
    above: bool = False
    noun: str = "a number"

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, numbers.Real):  # also NumPy's
            return False
        number: Any = value  # a Real has no comparison in its type
        return self.low <= number <= self.high and not (self.above and number == self.low)

    def __str__(self) -> str:
        if self.high == _LARGEST:
            return f"{self.noun} {'above' if self.above else 'of at least'} {self.low}"
        if self.above:
            return f"{self.noun} above {self.low} and at most {self.high}"
        return f"{self.noun} from {self.low} to {self.high}"


_WHOLE = "a whole number"
# Types of fields. Every number of a section has one of them, so that a value that cannot work is
# refused at the start.
Count = Annotated[int, Range(1, noun=_WHOLE)]
Whole = Annotated[int, Range(0, noun=_WHOLE)]
# Side of an image, canvas or mask in pixels or cells.
SIDES = Range(1, 2**16, noun=_WHOLE)
Side = Annotated[int, SIDES]
# Threads or processes beside the one that wants their work.
Workers = Annotated[int, Range(0, 1024, noun=_WHOLE)]
Seed = Annotated[int, Range(0, 2**32 - 1, noun=_WHOLE)]
Tokens = Annotated[int, Range(2, 77, noun=_WHOLE)]  # with those of start and end
Share = Annotated[float, Range(0, 1)]
PartOfSide = Annotated[float, Range(0, 1, above=True)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Momentum = Annotated[float, Range(0, 0.9999)]
# A softmax in float32 works with these.
Temperature = Annotated[float, Range(1e-6, 1e6)]
# Scores may be logits.
Score = Annotated[float, Range(-1e6, 1e6)]

_MAY_CHANGE = "may_change"


def may_change(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that a resumed run may change, because it does not affect the result.

    Examples are paths, log intervals, threads, memory and devices. All other fields must stay the
    same on resume.
    """
    return dataclasses.field(default=default, metadata={_MAY_CHANGE: True})


@dataclasses.dataclass(frozen=True)
class Section:
    """Base class of all settings; refuses values outside a field's choices or range."""

    def __post_init__(self):
        for name, choices in _choices(type(self)).items():
            value = getattr(self, name)
            if value not in choices:
                known = sorted(choice for choice in choices if choice is not None)
                raise ConfigError(f"{name}: {value!r} is none of {known}")
        for name, limits in _ranges(type(self)).items():
            value = getattr(self, name)
            if value is not None and any(number not in limits for number in _numbers(value)):
                raise ConfigError(f"{name}: expected {limits}, found {value!r}")


AnySection = typing.TypeVar("AnySection", bound=Section)


@functools.cache
def _choices(section: type) -> dict[str, tuple]:
    found = {}
    for name, kind in typing.get_type_hints(section).items():
        kinds = [k for k in typing.get_args(kind) if typing.get_origin(k) is typing.Literal]
        if typing.get_origin(kind) is typing.Literal:
            found[name] = typing.get_args(kind)
        elif kinds:
            found[name] = (*typing.get_args(kinds[0]), None)
    return found


@functools.cache
def _ranges(section: type) -> dict[str, Range]:
    """Return the ranges of the fields that hold numbers, also of those in tuples."""
    found = {}
    for name, kind in typing.get_type_hints(section, include_extras=True).items():
        for limits in _ranges_within(kind):
            found[name] = limits
    return found


def _ranges_within(kind: Any) -> Iterator[Range]:
    if typing.get_origin(kind) is Annotated:
        yield from (extra for extra in typing.get_args(kind) if isinstance(extra, Range))
    elif typing.get_origin(kind) in (tuple, types.UnionType, typing.Union):
        for part in typing.get_args(kind):
            yield from _ranges_within(part)


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for part in value:
            yield from _numbers(part)
    else:
        yield value


def stated_names(section: type) -> list[str]:
    """Return the fields that a model directory may state: those that change its results."""
    return [f.name for f in dataclasses.fields(section) if _MAY_CHANGE not in f.metadata]


def unstated(section: type[AnySection]) -> AnySection:
    """Return a section whose keys are all left to the model: None, at any depth."""
    usual = section()
    return dataclasses.replace(
        usual,
        **{
            name: unstated(type(value)) if isinstance(value, Section) else None
            for name in stated_names(section)
            for value in [getattr(usual, name)]
        },
    )


def completed(stated: AnySection, own: AnySection) -> AnySection:
    """Return ``stated`` with the values of ``own`` for keys that are None, at any depth.

    Keys that do not change results, such as those of memory, stay as stated.
    """
    changes = {}
    for name in stated_names(type(stated)):
        value, usual = getattr(stated, name), getattr(own, name)
        changes[name] = completed(value, usual) if isinstance(value, Section) else value
        if value is None:
            changes[name] = usual
    return dataclasses.replace(stated, **changes)


def require_stated(section: Section, key: str) -> None:
    """Refuse None in a section of a training, which has no model's own values.

    Raises:
        ConfigError: the message names the key.
    """
    for name in stated_names(type(section)):
        if getattr(section, name) is None:
            raise ConfigError(
                f"{key}.{name}: None, expected a number; only evaluations accept None"
            )


def require_ascending(section: Section, *names: str) -> None:
    """Refuse a pair of smallest and largest number in the wrong order.

    Raises:
        ConfigError: the message names the key.
    """
    for name in names:
        pair = getattr(section, name)
        if pair is not None and pair[0] > pair[1]:
            raise ConfigError(f"{name}: expected the smaller number first, found {pair}; swap them")


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
    source = textwrap.dedent(inspect.getsource(section)).strip()
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
