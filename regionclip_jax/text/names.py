"""Lists of names: classes and concepts, from a file or a command line. One format for all readers.

A names file is one of two kinds:

* ``.json``: has ``categories``, each with ``id`` and ``name``, as annotations of COCO and LVIS
  do. Names are read as words (``remote_control`` becomes ``remote control``), by ascending id.
* Any other ending: text in UTF-8, with or without a byte order mark, one name a line. Lines end
  with LF, CRLF or CR. Blanks around a name and lines of blanks alone are ignored. A tab ends the
  name; text after it is ignored. A comma with a number at the end of a line is a count and is
  ignored too. Any other comma belongs to the name. There are no comments: ``#`` is a letter.

Tables and other structured files are refused, as their lines are no names: YAML, XML, JSON without
the ending ``.json``, a ``.csv`` with other columns than a name and a count, and a number before a
tab with text behind it.

``write_concepts`` of ``text.concepts`` writes this format: ``name TAB count``.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from regionclip_jax.text.clip_tokenizer import clean
from regionclip_jax.text.prompts import fill_template, prepare_class_name
from regionclip_jax.untrusted import read_bytes, read_large_json, reason

_COUNT_AFTER_COMMA = re.compile(r"\s*,\s*\d+$")
# A prompt ends at 77 tokens. The search for a count takes the square of a line's length.
_LONGEST_NAME = 1000
_MOST_TEXT = 2**26  # bytes: a million names
_STRUCTURED = (".yaml", ".yml", ".xml", ".html", ".toml", ".jsonl", ".ndjson")
_LIKE_A_FILE = re.compile(r".*\.(txt|json)|[^,]*(/|\.[A-Za-z][A-Za-z0-9]{1,4})")


def read_names(path: str | Path) -> tuple[str, ...]:
    """Return the names of a file, in its order. The module's docstring states the format.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not of this format, has no names, an empty name, or two names that
            are the same text to the tokenizer. The message has the file, and the line of a name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a file of names, one a line")
    if path.suffix.lower() == ".json":
        return check_names(_names_of_categories(path), str(path))
    try:
        text = read_bytes(path, _MOST_TEXT).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, found {error}; save the file as UTF-8") from None
    text = text.replace("\r", "\n")
    _require_lines(path, text)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    names = [_without_count(line.partition("\t")[0].strip()) for _, line in lines]
    return _check(names, str(path), [f"line {number}" for number, _ in lines])


def resolve_names(given: str) -> tuple[str, ...]:
    """Return the names of an argument: ``"cat, remote control"``, or the path of a names file.

    Raises:
        FileNotFoundError: ``given`` looks like a path (an ending such as ``.txt``, or a last
            slash) and is not a file.
        ValueError: as ``read_names`` and ``check_names`` do.
    """
    # os.path: a list of names may be longer than a path can be, which Path.is_file does not accept.
    if os.path.isfile(given) or _LIKE_A_FILE.fullmatch(given):
        return read_names(given)
    return check_names(given.split(","), "class list")


def check_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the names, stripped; ``where`` names the list in errors.

    Raises:
        ValueError: no name, an empty one, or two that are the same text to the tokenizer; or a
            string instead of a list.
    """
    if isinstance(names, str):
        raise ValueError(f"{where}: expected a list of names, found the string {names!r}")
    return _check(names, where, [f"name {number}" for number in range(1, len(names) + 1)])


def tokenized_text(name: str) -> str:
    """Return the text of a name that the tokenizer sees. Names that share it share an embedding."""
    return clean(fill_template("{}", prepare_class_name(name)))


def names_among(names: Sequence[str], known: Sequence[str]) -> Bool[np.ndarray, " N"]:
    """Return True for each name whose text, as the tokenizer sees it, is that of a known one."""
    texts = {tokenized_text(name) for name in known}
    return np.array([tokenized_text(name) in texts for name in names], bool)


def match_names(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Spell each name as in ``known``, if an entry is the same text. Other names stay unchanged."""
    spellings = {tokenized_text(name): name for name in reversed(known)}
    exact = set(known)
    return tuple(
        name if name in exact else spellings.get(tokenized_text(name), name) for name in names
    )


def _check(names: Sequence[str], where: str, places: Sequence[str]) -> tuple[str, ...]:
    expected = "expected names that are not empty and differ"
    stripped = tuple(name.strip() for name in names)
    if not stripped:
        raise ValueError(f"{where}: {expected}, found none")
    first: dict[str, int] = {}
    for row, name in enumerate(stripped):
        if len(name) > _LONGEST_NAME:
            raise ValueError(
                f"{where}: {places[row]}: expected a name of at most {_LONGEST_NAME} characters, "
                f"found {name[:60]!r}...; shorten it"
            )
        if not name:
            raise ValueError(f"{where}: {expected}, found an empty name at {places[row]}")
        before = first.setdefault(tokenized_text(name), row)
        if before == row:
            continue
        again = (
            f"{name!r} more than once, at {places[before]} and {places[row]}; name it once"
            if name == stripped[before]
            else f"{stripped[before]!r} at {places[before]} and {name!r} at {places[row]}, which "
            "are the same text to the tokenizer; reword or remove one"
        )
        raise ValueError(f"{where}: {expected}, found {again}")
    return stripped


def _without_count(name: str) -> str:
    return name if len(name) > _LONGEST_NAME else _COUNT_AFTER_COMMA.sub("", name)


def _require_lines(path: Path, text: str) -> None:
    """Refuse a file whose lines are no names."""
    remedy = "give a text file with one name a line, or JSON with categories"
    if path.suffix.lower() in _STRUCTURED or _is_json(text) or _is_json(text.partition("\n")[0]):
        raise ValueError(f"{path}: expected one name a line, found structured text; {remedy}")
    for number, line in enumerate(text.split("\n"), 1):
        name, tab, rest = line.strip().partition("\t")
        behind = rest.strip()
        numbered = bool(tab and behind) and name.strip().isdigit() and not behind.isdigit()
        named = _without_count(name)
        table = path.suffix.lower() == ".csv" and ("," in named or '"' in named)
        if numbered or table:
            raise ValueError(
                f"{path}: line {number}: expected a name, perhaps with a count behind it, found "
                f"{line[:60]!r}: a row of a table; {remedy}"
            )


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        return False


def _names_of_categories(path: Path) -> list[str]:
    remedy = "give an annotation file as COCO's or LVIS's, or names in a .txt"
    content: Any = read_large_json(path, remedy)
    try:
        categories = sorted(content["categories"], key=lambda entry: entry["id"])
        return [prepare_class_name(entry["name"]) for entry in categories]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected JSON with categories that have id and name, found {reason(error)}; "
            f"{remedy}"
        ) from error
