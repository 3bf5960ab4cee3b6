"""Valid JSON with any one value replaced by a value of any type, for tests of its readers."""

import copy
import json
import math
from collections.abc import Iterator

# Types, signs, sizes and depths; the last is no number of JSON.
VALUES = (
    None, True, 0, -1, 1, 2**70, 10**400, 1.5, 1e308, "", "x", "9" * 5000, [], [1], [[]],
    [None] * 5, {}, {"a": 1}, math.nan,
)  # fmt: skip


def texts_with_another_value(valid) -> Iterator[str]:
    """Yield JSON texts of ``valid`` with one value replaced, at every depth."""
    for place in _places(valid):
        for value in VALUES:
            yield json.dumps(_replaced(valid, place, value))


def _places(value, place: tuple = ()) -> Iterator[tuple]:
    yield place
    if not isinstance(value, dict | list):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _places(item, (*place, key))


def _replaced(valid, place: tuple, value):
    if not place:
        return value
    changed = inner = copy.deepcopy(valid)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed
