"""Fields of cards: JSON values to dataclasses, with checked types and plausible sizes."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from regionclip_jax.settings import UserError
from regionclip_jax.untrusted import short

# Blocks of a tower. The deepest published CLIPs have 48 (ViT-bigG) and 64 (RN50x64) of them.
MAX_LAYERS = 80
# Any other size: channels, positions, token ids, pixels.
MAX_SIZE = 1_000_000
_DEPTHS = ("layers", "vision_layers", "text_layers", "blocks", "head_convs")
# Divisors, and an epsilon.
_POSITIVE = ("std", "eps")
AGAIN = "use the version of regionclip_jax that wrote it, or convert or export the model again"

Config = TypeVar("Config")


class CheckpointMismatch(UserError):
    """Error: files of weights or embeddings do not fit their use, or each other."""


def fits(kind: Any, value: Any) -> bool:
    """Return whether a JSON value is of a type: of numbers, texts, lists and their unions.

    Values of a class, such as an inner dataclass, are objects, which its own reader checks.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        plain, limits = arguments
        return fits(plain, value) and value in limits
    if origin is typing.Literal:
        return isinstance(value, str | int | None) and value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(fits(argument, value) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(arguments[0], item) for item in value)
    if origin is tuple:
        variable = arguments[-1] is Ellipsis
        if not isinstance(value, list | tuple) or not (variable or len(value) == len(arguments)):
            return False
        kinds = arguments[:1] * len(value) if variable else arguments
        return all(map(fits, kinds, value))
    if kind is float:
        return type(value) in (int, float) and _is_finite(value)
    if kind in (bool, int, str, type(None)):
        return type(value) is kind
    return isinstance(value, dict)


def read_fields(config_class: Callable[..., Config], values: Any, where: str) -> Config:
    """Build a dataclass from JSON values; a field with a default may be missing.

    Raises:
        CheckpointMismatch: a field is missing, unknown, of another type, or implausibly large.
    """
    fields = dataclasses.fields(typing.cast(type, config_class))
    known = {field.name for field in fields}
    # Older files lack the fields with a default.
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    if not isinstance(values, dict) or not needed <= set(values) <= known:
        given = values
        if isinstance(values, dict):
            # Unknown ones first, as long lists are cut.
            given = sorted(values, key=lambda name: (name in known, name))
        raise CheckpointMismatch(
            f"{where}: expected the fields {sorted(needed)}"
            + (f" and perhaps {sorted(known - needed)}" if known > needed else "")
            + f", found {short(given)}; {AGAIN}"
        )
    hints = typing.get_type_hints(config_class)
    for name, value in values.items():
        if not fits(hints[name], value):
            raise CheckpointMismatch(
                f"{where}.{name}: expected {_describe(hints[name])}, found {short(value)}; {AGAIN}"
            )
    config = config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    require_plausible(config, where, AGAIN)
    return config


def require_plausible(config: Any, where: str, remedy: str) -> None:
    """Refuse a config with a size that no model has, before anything is built from it.

    Args:
        config: a dataclass of sizes; fields that are configs themselves are checked as well.
        where: file, and perhaps key, for errors.
        remedy: advice in errors.

    Raises:
        CheckpointMismatch: see above.
    """
    for field in dataclasses.fields(config):
        value: Any = getattr(config, field.name)
        key = f"{where}.{field.name}"
        if dataclasses.is_dataclass(value):
            require_plausible(value, key, remedy)
        numbers: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
        sizes = [number for number in numbers if type(number) is int]
        most = MAX_LAYERS if field.name in _DEPTHS else MAX_SIZE
        if sizes and (min(sizes) < 1 or sum(sizes) > most):
            raise CheckpointMismatch(
                f"{key}: expected whole numbers from 1 to {most:,} in all, found {short(value)}; "
                f"{remedy}"
            )
        if field.name in _POSITIVE and not min(numbers) > 0:
            raise CheckpointMismatch(
                f"{key}: expected numbers above 0, found {short(value)}; {remedy}"
            )


def _is_finite(value: int | float) -> bool:
    # The largest int is larger than the largest float.
    return abs(value) < 1e300 and math.isfinite(value)


def _describe(kind: Any) -> str:
    """Name a type for errors."""
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {list(typing.get_args(kind))}"
    if isinstance(kind, type) and kind in (bool, int, float, str):
        return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[
            kind
        ]
    return "an object" if isinstance(kind, type) else str(kind)
