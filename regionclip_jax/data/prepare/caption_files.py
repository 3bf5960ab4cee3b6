"""Read captions without their images from JSON, tables and text files."""

import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from regionclip_jax.data.sources.skipped import SkippedEntries
from regionclip_jax.data.sources.text_tables import (
    CAPTION_COLUMNS,
    JSON_LINES,
    Columns,
    bounded_lines,
    is_unicode,
    named_columns,
    open_text,
    read_rows,
)
from regionclip_jax.data.sources.tsv_pairs import decode_text
from regionclip_jax.untrusted import read_large_json

_TABLES = (".csv", ".tsv", *JSON_LINES)
_ADDRESSES = ("http://", "https://")


def read_captions(path: str | os.PathLike, skipped: SkippedEntries | None = None) -> Iterator[str]:
    """Yield the captions of a file in order, without blank ones.

    Args:
        path: its suffix selects the format. ``.json``: COCO's ``captions_*.json``. ``.csv``,
            ``.tsv``, ``.jsonl``: a table as ``data.sources.text_tables`` reads it, with a column
            ``caption``, ``text`` or ``title``; a TSV without such a column: ``caption TAB url``
            (Conceptual Captions) or ``key TAB text`` (text file of TSV pairs). Any other suffix:
            one caption per line, or a table whose first row names columns of files and captions,
            such as Flickr8k's ``captions.txt``.
        skipped: counts the rows without a caption.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, JSON without captions, or a table without them, also if its suffix
            is that of a text.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a file of captions")
    skipped = SkippedEntries("rows") if skipped is None else skipped
    ending = path.suffix.lower()
    try:
        if ending == ".json":
            entries = enumerate(_coco(path), start=1)
        elif ending in _TABLES or _is_table(path):
            entries = _table(path)
        else:
            entries = _lines(path)
        for number, caption in entries:
            if not isinstance(caption, str):
                skipped.add("without_caption", f"{path.name} {number}")
            elif not is_unicode(caption):
                skipped.add("that_are_not_utf8", f"{path.name} {number}")
            elif caption.strip():
                yield caption
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, found {error}; convert the file") from error


def _is_table(path: pathlib.Path) -> bool:
    """Return True if the first row of a text names columns; refuse any other table."""
    with open_text(path) as file:
        first = next((line.strip() for line in bounded_lines(file) if line and line.strip()), "")
    if path.suffix.lower() == ".txt" and None not in named_columns(_cells(first)):
        return True
    try:
        is_json = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        is_json = False
    for found, what, ending in (
        (is_json, "a JSON object", ".jsonl"),
        ("\t" in first, "a tab", ".tsv"),
        (None not in named_columns(_cells(first)), "the names of columns", ".csv"),
    ):
        if found:
            raise ValueError(
                f"{path}: expected one caption a line, found {what} in the first line "
                f"{first[:60]!r}; if it is a table, let its name end in {ending}"
            )
    return False


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str | None]]:
    with open_text(path) as file:
        yield from enumerate(bounded_lines(file), start=1)


def _cells(line: str) -> list[str]:
    return line.split("\t" if "\t" in line else ",")


def _coco(path: pathlib.Path) -> list:
    remedy = "give COCO's captions_*.json, not instances_*.json; JSON lines end in .jsonl"
    content: Any = read_large_json(path, remedy)
    try:
        return [annotation["caption"] for annotation in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected annotations with captions, found {error!r}; {remedy}"
        ) from error


def _table(path: pathlib.Path) -> Iterator[tuple[int, object]]:
    named = True

    def find(header: list[str], rows: list[list[str]]) -> Columns:
        nonlocal named
        _, caption = named_columns(header)
        if caption is not None:
            return Columns(None, caption, named=True)
        if path.suffix.lower() != ".tsv" or len(header) < 2:
            raise ValueError(
                f"{path}: expected a column named one of {CAPTION_COLUMNS}, or two columns with a "
                f"tab between, found the first row {header[:5]}; name the columns in the first row"
            )
        named = False
        return Columns(None, 0 if header[1].startswith(_ADDRESSES) else 1, named=False)

    for number, (_, caption) in read_rows(path, find):
        if named or not isinstance(caption, str):
            yield number, caption
        else:
            yield from zip(itertools.repeat(number), decode_text(caption)[0])
