"""Source for a table of image files and captions: CSV, TSV or JSON lines, beside the images.

The first row names the columns. Without known names, the table must have two columns in either
order, one of them with names of existing files. File names are relative to the table, or to a
folder ``images`` beside it. Rows of the same image are one record with several captions. A ``.txt``
is a TSV if its first row has a tab, else a CSV (``captions.txt`` of Flickr8k). If the captions are
the last column of a CSV, their commas need no quotation marks.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

from regionclip_jax.data.sources.image_files import present_files, read_image
from regionclip_jax.data.sources.records import ImageTextRecord, PackedTexts
from regionclip_jax.data.sources.skipped import SkippedEntries
from regionclip_jax.data.sources.text_tables import (
    CAPTION_COLUMNS,
    ENDINGS,
    IMAGE_COLUMNS,
    NUM_PROBED,
    Columns,
    FindColumns,
    is_unicode,
    named_columns,
    read_rows,
)

# Folders of the images beside the table; Flickr8k's is "Images".
_FOLDERS = ("", "images", "Images")


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
        for number, (name, caption) in read_rows(self._path, _columns_of(self._path)):
            total += 1
            if not isinstance(name, str) or not isinstance(caption, str):
                skipped.add("without_file_or_caption", number)
            elif not name.strip() or not caption.strip():
                skipped.add("with_an_empty_file_or_caption", number)
            elif not (is_unicode(name) and is_unicode(caption)):
                skipped.add("that_are_not_utf8", number)
            else:
                captions.setdefault(name.strip(), []).append((number, caption.strip()))
        self._folder = _folder_of_files(self._path, itertools.islice(captions, NUM_PROBED))
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
    found = sorted(file.name for file in path.glob("*") if file.suffix.lower() in ENDINGS)
    return f"this folder has {found[:9]}: add one to path" if found else "correct path"


def _columns_of(path: pathlib.Path) -> FindColumns:
    """Return the search for the columns of a table beside its images."""

    def find(header: list[str], rows: list[list[str]]) -> Columns:
        image, caption = named_columns(header)
        if image is not None and caption is not None:
            return Columns(image, caption, named=True)
        image = _column_of_files(path, rows)
        if image is None:
            raise ValueError(_unknown_columns(path, header))
        return Columns(image, 1 - image, named=False)

    return find


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


def _unknown_columns(path: pathlib.Path, found: list[str]) -> str:
    return (
        f"{path}: expected a column of files ({', '.join(IMAGE_COLUMNS)}) and one of captions "
        f"({', '.join(CAPTION_COLUMNS)}), or two columns without names of which one names files "
        f"beside the table, found {[name[:60] for name in found[:9]]}; name the columns in the "
        "first row"
    )
