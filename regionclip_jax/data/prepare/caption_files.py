"""Read captions without their images from JSON, TSV, CSV and text files."""

import csv
import json
import os
import pathlib
from collections.abc import Iterator

from regionclip_jax.data.sources.tsv_pairs import decode_text

_CAPTION_COLUMNS = ("caption", "title", "text")


def read_captions(path: str | os.PathLike) -> Iterator[str]:
    """Yield the captions of a file in order, without blank ones.

    Args:
        path: its suffix selects the format. ``.json``: COCO's ``captions_*.json``. ``.tsv``,
            ``.csv``: a table whose first row names a column ``caption``, ``title`` or ``text``.
            Without such a row: ``caption TAB url`` (Conceptual Captions) or ``key TAB text``
            (text file of TSV pairs). Any other suffix: one caption per line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, JSON without captions, or a table without them.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a file of captions")
    read = {".json": _coco, ".tsv": _table, ".csv": _table}.get(path.suffix, _lines)
    try:
        yield from (caption for caption in read(path) if caption.strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, found {error}; convert the file") from error


def _lines(path: pathlib.Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _coco(path: pathlib.Path) -> Iterator[str]:
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        captions = [annotation["caption"] for annotation in annotations]
    except UnicodeDecodeError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected annotations with captions, found {error!r}; give COCO's "
            "captions_*.json, not instances_*.json"
        ) from error
    yield from captions


def _table(path: pathlib.Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            rows = csv.reader(file)
        else:
            rows = (line.rstrip("\r\n").split("\t") for line in file)
        first = next(rows, [])
        titles = [title.strip().lower() for title in first]
        column = next((titles.index(name) for name in _CAPTION_COLUMNS if name in titles), None)
        if column is not None:
            yield from (row[column] for row in rows if len(row) > column)
        elif path.suffix == ".csv" or len(first) < 2:
            raise ValueError(
                f"{path}: expected a column named one of {_CAPTION_COLUMNS}, or two columns with "
                f"a tab between, found the first row {first[:5]}"
            )
        elif first[1].strip().startswith(("http://", "https://")):
            yield first[0]
            yield from (row[0] for row in rows)
        else:
            yield from decode_text(first[1])[0]
            for row in rows:
                if len(row) > 1:
                    yield from decode_text(row[1])[0]
