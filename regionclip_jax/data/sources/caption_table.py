"""Source for a table of image files and captions: CSV, TSV or JSON lines, beside the images.

The first row names the columns. Without known names, the table must have two columns in either
order, one of them with names of existing files. File names are relative to the table, or to a
folder ``images`` beside it. Rows of the same image are one record with several captions. A ``.txt``
is a TSV if its first row has a tab, else a CSV (``captions.txt`` of Flickr8k). If the captions are
the last column of a CSV, their commas need no quotation marks.
"""

import collections
import csv
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

from regionclip_jax.data.sources.image_files import present_files, read_image
from regionclip_jax.data.sources.records import ImageTextRecord, PackedTexts
from regionclip_jax.data.sources.skipped import SkippedEntries

_IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "filepath", "path")
_CAPTION_COLUMNS = ("caption", "text", "title")
_DELIMITED = (".csv", ".tsv", ".txt")
# Folders of the images beside the table; Flickr8k's is "Images".
_FOLDERS = ("", "images", "Images")
_JSON_LINES = (".jsonl", ".ndjson")
# Rows used to find the column of files when the columns have no names.
_NUM_PROBED = 100
# Longest CSV row: a quoted caption may span several lines.
_MOST_LINES = 100

Row = tuple[object, object]  # file name and caption, unchecked


class CaptionTableSource:
    """Records of a table, in the order of the first row of each image.

    Attributes:
        report: counts of images, captions and skipped rows.
        named: report key -> first few names of its entries.

    Args:
        path: path of the table: ``.csv``, ``.tsv``, ``.txt`` or ``.jsonl``.
        max_skipped_fraction: share of the rows that may be skipped: a missing or empty column, or a
            missing file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a table, unknown columns, or too many skipped rows.
    """

    def __init__(self, path: str | os.PathLike, *, max_skipped_fraction: float = 0.0):
        self._path = pathlib.Path(path)
        if not self._path.is_file():
            raise FileNotFoundError(
                f"{self._path}: expected a table in CSV, TSV or JSON lines; "
                f"{_tables_in(self._path)}"
            )
        skipped = SkippedEntries("rows")
        captions: dict[str, list[tuple[int, str]]] = {}
        total = 0
        for number, (name, caption) in _read_rows(self._path):
            total += 1
            if not isinstance(name, str) or not isinstance(caption, str):
                skipped.add("without_file_or_caption", number)
            elif not name.strip() or not caption.strip():
                skipped.add("with_an_empty_file_or_caption", number)
            elif not (_is_unicode(name) and _is_unicode(caption)):
                skipped.add("that_are_not_utf8", number)
            else:
                captions.setdefault(name.strip(), []).append((number, caption.strip()))
        self._folder = _folder_of_files(self._path, itertools.islice(captions, _NUM_PROBED))
        present = present_files(self._folder, captions)
        for name, rows in captions.items():
            for number, _ in rows if name not in present else ():
                skipped.add("whose_file_is_missing", f"{number}: {name}")
        skipped.require_few(
            self._path,
            total,
            max_skipped_fraction,
            "expected an image file, relative to the table or to a folder images/ beside it, and "
            "its caption in every row",
        )
        names = [name for name in captions if name in present]
        self._names = PackedTexts(names)
        # JSON, because captions may hold any character.
        self._captions = PackedTexts(
            json.dumps([text for _, text in captions[name]], ensure_ascii=False) for name in names
        )
        self.report = {
            "images": len(names),
            "captions": sum(len(captions[name]) for name in names),
            **skipped.report,
        }
        self.named = skipped.named

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> ImageTextRecord:
        name = self._names[index]
        image = read_image(self._folder / name, repr(self), name)
        return ImageTextRecord(name, image, tuple(json.loads(self._captions[index])))

    def index_parts(self) -> Iterator[bytes]:
        """Yield names and captions; see ``fingerprint``."""
        yield from self._names.index_parts()
        yield from self._captions.index_parts()

    def sizes(self) -> None:
        """Return None: the sizes are unknown without opening the images."""
        return None

    def __repr__(self) -> str:
        return f"CaptionTableSource({str(self._path)!r})"


def _tables_in(path: pathlib.Path) -> str:
    endings = (*_DELIMITED, *_JSON_LINES)
    found = sorted(file.name for file in path.glob("*") if file.suffix.lower() in endings)
    return f"this folder has {found[:9]}: add one to path" if found else "correct path"


def _read_rows(path: pathlib.Path) -> Iterator[tuple[int, Row]]:
    """Yield line number and content of every row.

    Raises:
        ValueError: the file is not such a table, or its columns are unknown.
    """
    ending = path.suffix.lower()
    if ending not in _DELIMITED and ending not in _JSON_LINES:
        raise ValueError(
            f"{path}: expected a table that ends in .csv, .tsv, .txt or .jsonl, found {ending!r}"
        )
    # A byte that is not UTF-8 invalidates its row, not the table.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if ending in _JSON_LINES:
            yield from _read_json_lines(path, file)
        else:
            yield from _read_delimited(path, file, ending)


def _read_json_lines(path: pathlib.Path, file: Iterable[str]) -> Iterator[tuple[int, Row]]:
    columns: tuple[str, str] | None = None
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            yield number, (None, None)
            continue
        if columns is None:
            columns = _named_columns(list(entry))
            if columns is None:
                raise ValueError(_unknown_columns(path, list(entry)))
        yield number, (entry.get(columns[0]), entry.get(columns[1]))


def _read_delimited(
    path: pathlib.Path, file: Iterable[str], ending: str
) -> Iterator[tuple[int, Row]]:
    lines = iter(file)
    top = next(lines, "")
    is_csv = ending == ".csv" or (ending == ".txt" and "\t" not in top)
    lines = itertools.chain([top], lines)
    numbered = _csv_rows(lines) if is_csv else _tsv_rows(lines)
    first = list(itertools.islice(numbered, _NUM_PROBED))
    if not first:
        raise ValueError(f"{path} is empty: expected rows of image file and caption")
    header = [cell.strip() for cell in first[0][1]]
    named = _named_columns(header)
    num_columns = 2 if named is None else len(header)
    if named is not None:
        image, caption = header.index(named[0]), header.index(named[1])
        first = first[1:]
    else:
        image = _column_of_files(path, [row for _, row in first])
        if image is None:
            raise ValueError(_unknown_columns(path, header))
        caption = 1 - image
    for number, row in itertools.chain(first, numbered):
        if is_csv and len(row) > num_columns:
            # Commas without quotation marks are a caption's, if it is last; else nothing is known.
            last = caption == num_columns - 1
            row = [*row[:caption], ",".join(row[caption:])] if last else []
        cells = dict(enumerate(row))
        yield number, (cells.get(image), cells.get(caption))


def _tsv_rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a TSV, which has no quoting."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line.rstrip("\r\n").split("\t")


def _csv_rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield CSV rows, also of several lines; a broken row is empty, and the next line is tried.

    (Python's own reader would join all rows after an unclosed quotation mark into one field.)
    """
    source, waiting, number = iter(lines), collections.deque(), 1

    def ahead() -> Iterator[str]:
        for i in range(_MOST_LINES):
            if i == len(waiting):
                line = next(source, None)
                if line is None:
                    return
                waiting.append(line)
            yield waiting[i]

    while True:
        reader = csv.reader(ahead(), strict=True)
        try:
            row = next(reader, None)
            taken = reader.line_num
        except csv.Error:
            row, taken = [""], 1
        if row is None:
            return
        if row:
            yield number, row
        number += taken
        for _ in range(taken):
            waiting.popleft()


def _named_columns(header: list[str]) -> tuple[str, str] | None:
    """Return the columns of file and caption: the first known names in the header."""
    by_name = {name.strip().lower(): name for name in reversed(header)}
    image, caption = (
        next((by_name[name] for name in names if name in by_name), None)
        for names in (_IMAGE_COLUMNS, _CAPTION_COLUMNS)
    )
    return None if image is None or caption is None else (image, caption)


def _column_of_files(path: pathlib.Path, rows: list[list[str]]) -> int | None:
    """Return the only one of two columns that names existing files; None if not unique."""
    columns = [[row[i].strip() for row in rows if len(row) == 2] for i in (0, 1)]
    counts = [len(present_files(_folder_of_files(path, names), set(names))) for names in columns]
    if (counts[0] > 0) == (counts[1] > 0):
        return None
    return 0 if counts[0] else 1


def _folder_of_files(path: pathlib.Path, names: Iterable[str]) -> pathlib.Path:
    """Return the first folder beside a table that has any of the files, or that of the table."""
    names = set(names)
    folders = [path.parent / folder for folder in _FOLDERS]
    return next((folder for folder in folders if present_files(folder, names)), path.parent)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _unknown_columns(path: pathlib.Path, found: list[str]) -> str:
    return (
        f"{path}: expected a column of files ({', '.join(_IMAGE_COLUMNS)}) and one of captions "
        f"({', '.join(_CAPTION_COLUMNS)}), or two columns without names of which one names files "
        f"beside the table, found {[name[:60] for name in found[:9]]}; name the columns in the "
        "first row"
    )
