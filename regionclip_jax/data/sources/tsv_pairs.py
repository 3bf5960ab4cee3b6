"""Source for pairs of TSV files, one with images and one with texts: RegionCLIP's format.

Source: docs/reference/pretraining_data.md#tsv-format.

An image row is ``key TAB base64``, the text row of the same number ``key TAB text``. The text is a
caption, or JSON with ``captions`` (a list, of which five are used) and/or ``tags`` (words). An
optional ``name.lineidx`` beside ``name.tsv`` has the byte offset of every row, one per line.
Without it, the file is read once to find the offsets. A ``name.linelist`` selects rows by number.
In a folder, image files have "images", "image" or "img" in their names. The name of the text file
has "text", "text" or "caption" instead.

Departures from the reference: missing offsets are computed; a caption given as a plain string is
one caption (the reference takes its first five letters); other keys are ignored (the reference
draws them as empty captions, docs/reference/pretraining_data.md#captions); there is no limit of
20 files.
"""

import base64
import binascii
import itertools
import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from regionclip_jax.data.sources.image_opening import MOST_BYTES
from regionclip_jax.data.sources.records import ImageTextRecord, RecordError, locate
from regionclip_jax.data.sources.text_tables import LONGEST_LINE
from regionclip_jax.untrusted import open_regular, read_bytes

_TEXT_NAMES = (("images", "text"), ("image", "text"), ("img", "caption"))
_MAX_CAPTIONS = 5
_CHUNK = 2**24  # bytes
_MOST_NUMBERS = 2**28  # bytes: offsets of 20 million rows


class TsvPairsSource:
    """Image-text records of one pair of files, or of all pairs in a folder, in order of names.

    Args:
        path: a folder, or one image file.

    Raises:
        FileNotFoundError: the path, any image file in it, or a text file is missing.
        ValueError: a pair with different numbers of rows, or offsets that do not match their file.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = pathlib.Path(path)
        self._pairs = [
            (_Rows(images, MOST_BYTES), _Rows(texts, LONGEST_LINE))
            for images, texts in _find_pairs(self._path)
        ]
        for images, texts in self._pairs:
            if len(images) != len(texts):
                raise ValueError(
                    f"{images.path} has {len(images)} rows but {texts.path} has {len(texts)}: "
                    "expected a text for every image; one of the files is incomplete, or its "
                    ".lineidx is of another version"
                )
        self._ends = list(itertools.accumulate(len(images) for images, _ in self._pairs))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> ImageTextRecord:
        part, row = locate(self, self._ends, index)
        images, texts = self._pairs[part]
        key, image = self._split(images, row)
        text_key, text = self._split(texts, row)
        if key != text_key:
            raise RecordError(
                repr(self), key, f"row {row} of {texts.path.name} has another key, {text_key}"
            )
        try:
            # Without validation, characters outside base64 would be dropped silently.
            decoded = base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RecordError(repr(self), key, f"image is not base64: {error}") from error
        return ImageTextRecord(key, decoded, *decode_text(text))

    def index_parts(self) -> Iterator[bytes]:
        """Yield the offsets of the rows; see ``fingerprint``."""
        for pair in self._pairs:
            yield from (rows.offsets() for rows in pair)

    def __repr__(self) -> str:
        return f"TsvPairsSource({str(self._path)!r})"

    def _split(self, rows: "_Rows", row: int) -> tuple[str, str]:
        try:
            columns = rows.read(row).decode("utf-8-sig").split("\t", 2)
        except ValueError as error:
            is_bytes = isinstance(error, UnicodeDecodeError)
            what = f"is not UTF-8: {error}" if is_bytes else f"has {error}"
            raise RecordError(repr(self), f"{rows.path.name} row {row}", what) from error
        if len(columns) < 2:
            what = f"has {len(columns)} column, expected key and content with a tab between"
            raise RecordError(repr(self), f"{rows.path.name} row {row}", what)
        return columns[0].strip(), columns[1].strip()


def decode_text(field: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return ``(captions, tags)`` of a text column; text other than a JSON object is a caption."""
    try:
        content = json.loads(field)
    except (ValueError, RecursionError):
        return (field,), ()
    if not isinstance(content, dict):
        return (field,), ()
    captions, tags = content.get("captions"), content.get("tags")
    if not isinstance(captions, list):
        captions = [captions] if isinstance(captions, str) else []
    if not isinstance(tags, list):
        tags = tags.split() if isinstance(tags, str) else []
    # Values other than text, such as null, are dropped.
    captions = [text for text in captions if isinstance(text, str)]
    return tuple(captions[:_MAX_CAPTIONS]), tuple(tag for tag in tags if isinstance(tag, str))


class _Rows:
    """Random access to the rows of a file, thread-safe: every read opens the file anew.

    Args:
        longest: number of bytes from which a row is not read.
    """

    def __init__(self, path: pathlib.Path, longest: int):
        self.path, self._longest = path, longest
        size = path.stat().st_size
        index = path.with_suffix(".lineidx")
        if index.is_file():
            self._starts = _read_numbers(index)
        else:
            self._starts = _find_starts(path)
        if len(self._starts) and not (
            self._starts[0] == 0 and (np.diff(self._starts) > 0).all() and self._starts[-1] < size
        ):
            raise ValueError(
                f"{index} does not fit {path} of {size} bytes: offsets must begin with 0, grow and "
                "stay within the file; delete it to have it computed"
            )
        self._ends = np.append(self._starts[1:], size)
        chosen = path.with_suffix(".linelist")
        if chosen.is_file():
            rows = np.sort(_read_numbers(chosen))
            if len(rows) and not 0 <= rows[0] <= rows[-1] < len(self._starts):
                raise ValueError(
                    f"{chosen} names rows {rows[0]} to {rows[-1]}, but {path} has rows 0 to "
                    f"{len(self._starts) - 1}: repair or delete the list"
                )
            self._starts, self._ends = self._starts[rows], self._ends[rows]

    def __len__(self) -> int:
        return len(self._starts)

    def offsets(self) -> bytes:
        return self._starts.tobytes() + self._ends.tobytes()

    def read(self, row: int) -> bytes:
        size = int(self._ends[row] - self._starts[row])
        if size > self._longest:
            raise ValueError(f"{size} bytes, expected at most {self._longest}")
        with open(self.path, "rb") as file:
            file.seek(self._starts[row])
            return file.read(size).rstrip(b"\r\n")


def _read_numbers(path: pathlib.Path) -> np.ndarray:
    try:
        text = read_bytes(path, _MOST_NUMBERS).decode("utf-8-sig")
        return np.array(text.split(), np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: expected one whole number a line, {error}") from error


def _find_starts(path: pathlib.Path) -> np.ndarray:
    """Return the offsets of all rows; a row may be longer than the memory."""
    size, starts = path.stat().st_size, [np.zeros(1, np.int64)]
    with open_regular(path) as file:
        for position in range(0, size, _CHUNK):
            ends = np.flatnonzero(np.frombuffer(file.read(_CHUNK), np.uint8) == ord("\n"))
            starts.append(ends + position + 1)
    found = np.concatenate(starts)
    return found[found < size]


def _find_pairs(path: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    if path.is_dir():
        images = sorted(file for file in path.glob("*.tsv") if _text_name(file.name) is not None)
        if not images:
            raise FileNotFoundError(
                f"{path} has no image file: expected *.tsv with 'images', 'image' or 'img' in "
                "its name"
            )
    elif path.is_file():
        images = [path]
    else:
        raise FileNotFoundError(f"{path} does not exist: expected a .tsv file or a folder of them")
    pairs = []
    for image in images:
        name = _text_name(image.name)
        if name is None or not (texts := image.with_name(name)).is_file():
            raise FileNotFoundError(
                f"{image} has no text file {name or '(no images, image or img in its name)'} "
                "beside it: copy it there or correct the name"
            )
        pairs.append((image, texts))
    return pairs


def _text_name(image_name: str) -> str | None:
    for word, replacement in _TEXT_NAMES:
        if word in image_name:
            return image_name.replace(word, replacement)
    return None
