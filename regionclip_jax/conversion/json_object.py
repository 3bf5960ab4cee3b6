"""Objects of configuration files in JSON; every error names the file and the key."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from regionclip_jax.artifacts.card_fields import MAX_SIZE, CheckpointMismatch, fits
from regionclip_jax.untrusted import read_model_json, short

REMEDY = "give the configuration file of this checkpoint, in a directory of their own"

Value = TypeVar("Value")


class JsonObject:
    """A JSON object of a configuration file.

    Attributes:
        path: of the file.
        values: by key.
    """

    def __init__(self, path: Path, values: Any, where: str = "") -> None:
        if not isinstance(values, dict):
            key = f"{where.removesuffix('.')}: " if where else ""
            raise CheckpointMismatch(
                f"{path}: {key}expected a JSON object, found {json.dumps(values)[:40]}; copy the "
                "file again"
            )
        self.path, self.values, self._where = path, values, where

    @classmethod
    def read(cls, path: Path) -> "JsonObject":
        """Read a file.

        Raises:
            CheckpointMismatch: the file is unreadable, no JSON or no object.
        """
        try:
            values = read_model_json(path)
        except (OSError, ValueError) as error:
            raise CheckpointMismatch(f"{error}; copy the file again") from error
        return cls(path, values)

    def refuse(self, key: str, expected: str, remedy: str = REMEDY) -> NoReturn:
        found = self.values.get(key)
        raise CheckpointMismatch(
            f"{self.path}: {self._where}{key}: expected {expected}, found {short(found)}; {remedy}"
        )

    def part(
        self, key: str, defaults: Mapping[str, Any] | None = None, *, needed: bool = False
    ) -> "JsonObject":
        """Return the object of a key, completed by ``defaults``.

        Args:
            needed: refuse null and a missing key, which are otherwise objects without keys.
        """
        value = self.values.get(key)
        if value is None and not needed:
            value = {}
        part = JsonObject(self.path, value, f"{self._where}{key}.")
        part.values = {**(defaults or {}), **part.values}
        return part

    def choice(self, key: str, table: Mapping[Any, Value]) -> Value:
        """Return the entry of ``table`` for the value of a key."""
        value = self.values.get(key)
        if not isinstance(value, str | int | None) or value not in table:
            self.refuse(key, f"one of {list(table)}", "no other is supported")
        return table[value]

    def count(self, key: str) -> int:
        value = self.values.get(key)
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            self.refuse(key, f"a positive whole number up to {MAX_SIZE:,}")
        return value

    def number(self, key: str) -> float:
        value: Any = self.values.get(key)
        if not fits(float, value) or not 0 < value <= MAX_SIZE:
            self.refuse(key, f"a positive number up to {MAX_SIZE:,}")
        return value

    def colour(self, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return three numbers of RGB; a missing key, and null, have the default."""
        values = self.values.get(key)
        if values is None:
            return default
        if not fits(tuple[float, float, float], values):
            self.refuse(key, "three numbers (RGB)")
        red, green, blue = map(float, values)
        return red, green, blue
