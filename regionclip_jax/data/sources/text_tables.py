"""Rows of CSV, TSV and JSON lines: the one reader of tables with captions.

The ending selects the format. A ``.txt`` is a TSV if its first row has a tab, else a CSV. The first
row may name the columns. If the captions are the last column of a CSV, their commas need no
quotation marks. A line of more than ``LONGEST_LINE`` characters is a broken row.
"""

import collections
import csv
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TextIO

from regionclip_jax.untrusted import open_regular

IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "filepath", "path")
CAPTION_COLUMNS = ("caption", "text", "title")
JSON_LINES = (".jsonl", ".ndjson")
ENDINGS = (".csv", ".tsv", ".txt", *JSON_LINES)
# Rows used to find the columns when they have no names, or the keys of JSON lines.
NUM_PROBED = 100
# Far longer than a caption with its columns; a further part would only be ignored.
LONGEST_LINE = 2**20
# Longest CSV row: a quoted caption may span several lines.
_MOST_LINES = 100

_END = ""  # no line is empty

Row = tuple[object, object]  # file name and caption, unchecked


class Columns(NamedTuple):
    """Numbers of the columns of files (None: not wanted) and captions."""

    image: int | None
    caption: int
    # The first row names the columns.
    named: bool


# Names of the columns or the first row, and the first rows (none in JSON lines) -> the columns.
FindColumns = Callable[[list[str], list[list[str]]], Columns]


def read_rows(path: pathlib.Path, find_columns: FindColumns) -> Iterator[tuple[int, Row]]:
    """Yield line number and content of every row; a broken row has None for both cells.

    A byte that is not UTF-8 becomes a lone surrogate, so it invalidates its row, not the table.

    Args:
        find_columns: raises ValueError if the table lacks the columns.

    Raises:
        ValueError: another ending, an empty table, or as ``find_columns``.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(
            f"{path}: expected a table that ends in .csv, .tsv, .txt or .jsonl, found {ending!r}"
        )
    with open_text(path, errors="surrogateescape", newline="") as file:
        if ending in JSON_LINES:
            yield from _read_json_lines(bounded_lines(file), find_columns)
        else:
            yield from _read_delimited(path, bounded_lines(file), find_columns)


def open_text(
    path: pathlib.Path, *, errors: str = "strict", newline: str | None = None
) -> io.TextIOWrapper:
    """Open a regular text file in UTF-8, with or without a byte order mark, for reading."""
    return io.TextIOWrapper(open_regular(path), "utf-8-sig", errors, newline)


def bounded_lines(file: TextIO) -> Iterator[str | None]:
    """Yield the lines of a text; None for one of more than ``LONGEST_LINE`` characters."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = file.readline(LONGEST_LINE)
        yield None


def named_columns(header: list[str]) -> tuple[int | None, int | None]:
    """Return the columns of files and captions: the first known names in the header."""
    known = [name.strip().lower() for name in header]
    image, caption = (
        next((known.index(name) for name in names if name in known), None)
        for names in (IMAGE_COLUMNS, CAPTION_COLUMNS)
    )
    return image, caption


def _read_json_lines(
    lines: Iterable[str | None], find_columns: FindColumns
) -> Iterator[tuple[int, Row]]:
    entries = _json_entries(lines)
    first = list(itertools.islice(entries, NUM_PROBED))
    names = _usual_keys([entry for _, entry in first if entry])
    if not names:
        yield from ((number, (None, None)) for number, _ in itertools.chain(first, entries))
        return
    image, caption, _ = find_columns(names, [])
    for number, entry in itertools.chain(first, entries):
        name = None if image is None else entry.get(names[image])
        yield number, (name, entry.get(names[caption]))


def _json_entries(lines: Iterable[str | None]) -> Iterator[tuple[int, dict]]:
    """Yield line number and object of every line; a broken line has none of the keys."""
    for number, line in enumerate(lines, start=1):
        if line is not None and not line.strip():
            continue
        try:
            entry = None if line is None else json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        yield number, entry if isinstance(entry, dict) else {}


def _usual_keys(entries: list[dict]) -> list[str]:
    """Return the keys of some entries, without rarer names of the same column.

    So one damaged line, even the first, does not decide which keys have files and captions.
    """
    counts = collections.Counter(key for entry in entries for key in entry)
    rare: set[str] = set()
    for column in (IMAGE_COLUMNS, CAPTION_COLUMNS):
        known = {key: count for key, count in counts.items() if key.strip().lower() in column}
        rare |= {key for key, count in known.items() if count < max(known.values())}
    return [key for key in counts if key not in rare]


def _read_delimited(
    path: pathlib.Path, lines: Iterator[str | None], find_columns: FindColumns
) -> Iterator[tuple[int, Row]]:
    ending, top = path.suffix.lower(), next(lines, "")
    is_csv = ending == ".csv" or (ending == ".txt" and "\t" not in (top or ""))
    lines = itertools.chain([top], lines)
    numbered = _csv_rows(lines) if is_csv else _tsv_rows(lines)
    first = list(itertools.islice(numbered, NUM_PROBED))
    if not first:
        raise ValueError(f"{path} is empty: expected rows of image file and caption")
    header = [cell.strip() for cell in first[0][1]]
    image, caption, named = find_columns(header, [row for _, row in first])
    num_columns = len(header) if named else 2
    for number, row in itertools.chain(first[1:] if named else first, numbered):
        if is_csv and len(row) > num_columns:
            # Commas without quotation marks are a caption's, if it is last; else nothing is known.
            last = caption == num_columns - 1
            row = [*row[:caption], ",".join(row[caption:])] if last else []
        cells = dict(enumerate(row))
        yield number, (None if image is None else cells.get(image), cells.get(caption))


def _tsv_rows(lines: Iterable[str | None]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a TSV, which has no quoting; a broken row is empty."""
    for number, line in enumerate(lines, start=1):
        if line is None:
            yield number, []
        elif line.strip():
            yield number, line.rstrip("\r\n").split("\t")


def _csv_rows(lines: Iterable[str | None]) -> Iterator[tuple[int, list[str]]]:
    """Yield CSV rows, also of several lines; a broken row is empty, and the next line is tried.

    (Python's own reader would join all rows after an unclosed quotation mark into one field.)
    """
    source, waiting, number = iter(lines), collections.deque(), 1

    def ahead() -> Iterator[str]:
        for i in range(_MOST_LINES):
            if i == len(waiting):
                if (line := next(source, _END)) == _END:
                    return
                waiting.append(line)
            if waiting[i] is None:  # too long
                return
            yield waiting[i]

    while True:
        if waiting and waiting[0] is None:
            yield number, []
            number += 1
            waiting.popleft()
            continue
        reader = csv.reader(ahead(), strict=True)
        try:
            row = next(reader, None)
            taken = reader.line_num
            if row is None and not waiting:
                return
            if row:
                yield number, row
        except csv.Error:
            yield number, []
            taken = 1
        number += taken
        for _ in range(taken):
            waiting.popleft()


def is_unicode(text: str) -> bool:
    """Return False for a text with lone surrogates, from bytes that were not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
