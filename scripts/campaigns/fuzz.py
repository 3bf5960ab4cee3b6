"""Mutate records at random; the records beside them must be read as before."""

import functools
import json
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from campaigns.children import Trial
from campaigns.layouts import LAYOUTS, Entry, Layout, write
from regionclip_jax.settings import UserError

PARTS = tuple(LAYOUTS)
# Records of a trial, and how many of them are mutated at most.
NUM_RECORDS = 100
_MOST_MUTATED = 20
# Values of other types, sizes and depths than any format expects.
_VALUES = [
    "null", "true", "[]", "{}", '""', '"x"', '"\\ud800"', "-1", "0.5", "1e400", "NaN", "-Infinity",
    "9223372036854775808", "1" + "0" * 40, "[[[[1]]]]", '[1, 2, 3, 4]', '{"a": 1}',
    "[" * 500 + "]" * 500,
]  # fmt: skip
_PIECES = [b"", b"\0", b"\xff\xfe", b'"', b"'", b"\t", b",", b"<", b"&", b"{", b"\\", b"-1", b"nan",
           b"1e999", "é".encode(), b"\xed\xa0\x80", b" " * 50]  # fmt: skip


def fuzz(seed: int, trial: Trial) -> dict:
    """Read records of which some are mutated; count good ones that are lost or changed."""
    rng = np.random.default_rng([seed, 4, PARTS.index(trial.part), trial.number])
    layout = LAYOUTS[trial.part]
    entries, expected = _originals(trial.part)
    count = int(rng.integers(1, _MOST_MUTATED + 1))
    mutated = {int(i) for i in rng.choice(len(entries), count, replace=False)}
    changed = [
        mutate(entry, layout, rng) if number in mutated else entry
        for number, entry in enumerate(entries)
    ]
    result = {"records": len(entries), "mutated": len(mutated)}
    with tempfile.TemporaryDirectory() as folder:
        write(layout, Path(folder) / "data", changed)
        try:
            found = layout.read(Path(folder) / "data")
        # There are fewer unusable records than the limit allows, so a refusal loses good ones.
        except (UserError, FileNotFoundError) as error:
            outcome = "refused" if layout.may_refuse else "lost"
            return result | {"outcome": outcome, "text": f"{trial}: {error}"[:300]}
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            text = f"{trial}: {type(error).__name__} at {place}: {error}"
            return result | {"outcome": "traceback", "text": text[:300]}
    lost = [
        number
        for number in range(len(entries))
        if number not in mutated and not _is_kept(expected[str(number)], found.get(str(number)))
    ]
    if lost:
        text = f"{len(lost)} good records lost or changed, e.g. number {lost[0]} of {trial}"
        return result | {"outcome": "lost", "text": text}
    return result | {"outcome": "read"}


@functools.cache
def _originals(part: str) -> tuple[list[Entry], dict[str, Any]]:
    """Return entries, and what is read from them when none is mutated."""
    layout = LAYOUTS[part]
    entries = layout.entries(NUM_RECORDS)
    with tempfile.TemporaryDirectory() as folder:
        write(layout, Path(folder) / "data", entries)
        expected = layout.read(Path(folder) / "data")
    if {str(number) for number in range(NUM_RECORDS)} - {k for k, v in expected.items() if v}:
        raise RuntimeError(f"{part}: the records are not all read before any is mutated")
    return entries, expected


def _is_kept(expected: Any, found: Any) -> bool:
    # A mutated row may name the image of a good one, and adds a caption to it.
    return expected <= found if isinstance(found, set) else expected == found


def mutate(entry: Entry, layout: Layout, rng: np.random.Generator) -> Entry:
    """Change one piece of an entry."""
    pieces = list(entry)
    chosen = int(rng.integers(len(pieces)))
    if layout.is_json:
        pieces[chosen] = _mutate_json(pieces[chosen], rng)
        return tuple(pieces)
    piece = pieces[chosen]
    for _ in range(int(rng.integers(1, 4))):
        piece = _mutate_bytes(piece, rng)
    if layout.lines:
        piece = piece.replace(b"\n", b" ").replace(b"\r", b" ")
    pieces[chosen] = piece
    return tuple(pieces)


def _mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    # Half of the changes fall on the first bytes, where formats have their headers.
    within = min(len(data), 64) if rng.integers(2) else len(data)
    position = int(rng.integers(within + 1))
    match int(rng.integers(6)):
        case 0:
            return data[:position]
        case 1:
            length = int(rng.integers(1, 9))
            return data[:position] + data[position + length :]
        case 2:
            return data[:position] + rng.bytes(int(rng.integers(1, 9))) + data[position:]
        case 3:
            piece = _PIECES[int(rng.integers(len(_PIECES)))]
            return data[:position] + piece + data[position + len(piece) :]
        case 4:
            return data[:position] + data[max(0, position - 20) : position] + data[position:]
        case _:
            if position == len(data):
                return data
            flipped = data[position] ^ (1 << int(rng.integers(8)))
            return data[:position] + bytes([flipped]) + data[position + 1 :]


def _mutate_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace or remove one value of a JSON object, or the object itself."""
    content = json.loads(data)
    keys = list(content)
    value = _VALUES[int(rng.integers(len(_VALUES)))]
    chosen = int(rng.integers(len(keys) + 1))
    if chosen == len(keys):
        return value.encode()
    key = keys[chosen]
    if rng.integers(5) == 0:
        del content[key]
        return json.dumps(content).encode()
    if isinstance(content[key], list) and rng.integers(2):
        content[key][int(rng.integers(len(content[key])))] = "\0"
    else:
        content[key] = "\0"
    return json.dumps(content).replace(json.dumps("\0"), value).encode()
