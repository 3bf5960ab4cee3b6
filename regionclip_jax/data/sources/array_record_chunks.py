"""Sizes of the chunks of ArrayRecord files, read before the library unpacks them.

ArrayRecord unpacks a chunk in its own code and memory, and a few compressed bytes may state any
size. The library trusts the header of a chunk, so this module compares that header with the size of
the file first.

A file is a Riegeli file. Each block of 64 KiB begins with a block header. A chunk is a header of 40
bytes and its data; block headers interrupt both. The last block is one chunk, the postscript, with
the offset of the footer. The footer is a chunk with a record for each chunk of data:
``ArrayRecordFooter`` with the offset, the size and the number of records. Sources: ``layout.proto``
of ArrayRecord, ``doc/riegeli_records_file_format.md`` of Riegeli.
"""

import io
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import zstandard
from jaxtyping import Int64, UInt8, UInt64

from regionclip_jax.untrusted import most_bytes, open_regular

_BLOCK = 2**16
_BLOCK_HEADER = 24
# Hash of the header, bytes of data, hash of the data, type and number of records, unpacked bytes.
_CHUNK_HEADER = struct.Struct("<5Q")
_SIMPLE = ord("r")
_UNCOMPRESSED, _ZSTANDARD = 0, ord("z")
_LARGEST_WINDOW = 2**27
# Memory of the library for each record of a chunk.
_BYTES_OF_RECORD = 16
# Protobuf's tags: of the first three fields of a message, as integers; of a message as first field.
_TAGS = (0x08, 0x10, 0x18)
_MESSAGE = 0x0A
_Bytes = UInt8[np.ndarray, " bytes"]
_REMEDY = "copy it again or write it again"


class Part(NamedTuple):
    """Consecutive records of a file."""

    path: str | os.PathLike
    # Index of the first one in the file.
    first: int = 0
    # None: all from the first one on.
    count: int | None = None


class ChunkBounds:
    """Bounds of the chunks of several files, whose records are numbered through.

    Args:
        parts: in the order of their records.

    Raises:
        ValueError: a file is cut or damaged, or its footer has no bound.
        OSError: a file cannot be opened.
    """

    def __init__(self, parts: Sequence[Part]):
        files = {os.fspath(path): _File(path) for path, _, _ in parts}
        self._files = [files[os.fspath(part.path)] for part in parts]
        self._first = [part.first for part in parts]
        self._ends = np.cumsum(
            [
                file.count - part.first if part.count is None else part.count
                for part, file in zip(parts, self._files, strict=True)
            ]
        )

    def require(self, index: int) -> None:
        """Refuse the chunk of a record, unless the size of its file bounds its unpacked size.

        Raises:
            ValueError: the chunk states more than ``untrusted.most_bytes``, or is no chunk of
                plain records.
            OSError: the file cannot be read.
        """
        part = int(np.searchsorted(self._ends, index, "right"))
        before = int(self._ends[part - 1]) if part else 0
        self._files[part].require(self._first[part] + index - before)


class _File:
    """Offsets of the chunks of one file; a process that gets a copy opens it again.

    Attributes:
        count: number of records.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = os.fspath(path)
        self._file: io.BufferedReader | None = None
        try:
            self._size = os.fstat(self._opened().fileno()).st_size
            if self._size < 2 * _BLOCK:
                raise ValueError(f"{self._size} bytes, fewer than the smallest file has")
            rows, self.count = self._read_footer()
        except (ValueError, zstandard.ZstdError) as error:
            raise ValueError(
                f"{self._path}: expected an ArrayRecord file, found one that is cut or changed "
                f"({error}): {_REMEDY}"
            ) from error
        self._offsets = rows[:, 1].copy()
        # As the library, which divides by the number of records of the first chunk.
        self._records_of_chunk = max(int(rows[0, 5]), 1) if len(rows) else 1

    def _read_footer(self) -> tuple[UInt64[np.ndarray, "chunks 6"], int]:
        """Return tags and numbers of the chunks, and the number of records."""
        postscript, _ = self._records(self._size - _BLOCK)
        fields = _varints(postscript)
        if fields[:1].tolist() != [_TAGS[0]] or fields[2:3].tolist() != [_TAGS[1]]:
            raise ValueError("no offset of a footer in the last block")
        footer, ends = self._records(int(fields[1]))
        tags, numbers = _metadata(footer[: ends[0]])
        rows = _varints(footer[ends[0] :])
        if tags != _TAGS or len(rows) != 6 * (len(ends) - 1) or len(rows) != 6 * numbers[1]:
            raise ValueError("a footer with other fields")
        rows = rows.reshape(-1, 6)
        if not (rows[:, ::2] == _TAGS).all() or int(rows[:, 5].sum()) != numbers[2]:
            raise ValueError("a footer with other fields")
        return rows, numbers[2]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def require(self, record: int) -> None:
        chunk = record // self._records_of_chunk
        if chunk >= len(self._offsets):
            raise ValueError(f"{self._path}: no chunk for record {record}: {_REMEDY}")
        self._header(int(self._offsets[chunk]))

    def _records(self, offset: int) -> tuple[_Bytes, Int64[np.ndarray, " records"]]:
        """Return the records of the chunk at ``offset``, joined, and the end of each."""
        size, count = self._header(offset)
        data = np.frombuffer(self._read(self._after_header(offset), size), np.uint8)
        if not len(data):
            raise ValueError("an empty chunk")
        stored, rest = _number(data[1:])
        bound = most_bytes(self._size)
        lengths = _varints(_unpacked(data[0], rest[:stored], bound))
        values = _unpacked(data[0], rest[stored:], bound)
        ends = np.cumsum(lengths.astype(np.int64))
        fit = 0 < len(lengths) == count and int(lengths.max()) <= len(values)
        if not fit or ends[-1] != len(values):
            raise ValueError("lengths of records that do not fit their chunk")
        return values, ends

    def _header(self, offset: int) -> tuple[int, int]:
        """Return the bytes of data and the number of records of a chunk within the bound."""
        _, size, _, kind, unpacked = _CHUNK_HEADER.unpack(self._read(offset, _CHUNK_HEADER.size))
        count, bound = kind >> 8, most_bytes(self._size)
        if kind & 0xFF != _SIMPLE:
            raise ValueError(f"{self._path}: at {offset}: no chunk of plain records: {_REMEDY}")
        if size > self._size or unpacked + _BYTES_OF_RECORD * count > bound:
            raise ValueError(
                f"{self._path}: at {offset}: a chunk of {count} records that unpacks to {unpacked} "
                f"bytes, expected at most {bound} for a file of {self._size}: {_REMEDY}"
            )
        return size, count

    def _after_header(self, offset: int) -> int:
        """Return the offset of the data of the chunk at ``offset``."""
        left = _CHUNK_HEADER.size
        while left:
            offset += _BLOCK_HEADER if offset % _BLOCK == 0 else 0
            taken = min(left, _BLOCK - offset % _BLOCK)
            offset, left = offset + taken, left - taken
        return offset

    def _read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from ``offset`` on, without the headers of blocks."""
        pieces, file = [], self._opened().fileno()
        while count:
            offset += _BLOCK_HEADER if offset % _BLOCK == 0 else 0
            taken = min(count, _BLOCK - offset % _BLOCK)
            pieces.append(os.pread(file, taken, offset))
            if len(pieces[-1]) != taken:
                raise ValueError(f"{self._path}: ends within a chunk: {_REMEDY}")
            offset, count = offset + taken, count - taken
        return b"".join(pieces)

    def _opened(self) -> io.BufferedReader:
        if self._file is None:
            self._file = open_regular(self._path)
        return self._file


def _metadata(data: _Bytes) -> tuple[tuple[int, ...], list[int]]:
    """Return tags and values of the first three fields of the footer's metadata.

    They are the version, the number of chunks and the number of records.
    """
    tag, rest = _number(data)
    _, rest = _number(rest)
    tags, values = [], []
    while tag == _MESSAGE and len(tags) < len(_TAGS):
        number, rest = _number(rest)
        tags.append(number)
        number, rest = _number(rest)
        values.append(number)
    return tuple(tags), values


def _unpacked(kind: int, data: _Bytes, bound: int) -> _Bytes:
    """Return the bytes of one of the two parts of a chunk, at most ``bound``."""
    if kind == _UNCOMPRESSED:
        return data
    if kind != _ZSTANDARD:
        raise ValueError(f"a footer of compression {chr(kind)!r}, expected none or Zstandard")
    expected, packed = _number(data)
    if expected > bound:
        raise ValueError(f"a footer of {expected} bytes, expected at most {bound}")
    # The reader allocates what it is asked for, and not what the data states.
    with zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).stream_reader(
        packed.tobytes()
    ) as file:
        unpacked = file.read(expected)
        if len(unpacked) != expected or file.read(1):
            raise ValueError(f"a footer that does not unpack to {expected} bytes")
    return np.frombuffer(unpacked, np.uint8)


def _number(data: _Bytes) -> tuple[int, _Bytes]:
    """Return the integer at the start of ``data``, and the rest."""
    ends = np.flatnonzero(data[:10] < 0x80)
    if not len(ends):
        raise ValueError("a number of more than 10 bytes")
    end = int(ends[0]) + 1
    return int(_varints(data[:end])[0]), data[end:]


def _varints(data: _Bytes) -> UInt64[np.ndarray, " numbers"]:
    """Decode consecutive integers of 7 bits a byte, lowest first; the last byte is below 128."""
    if not len(data):
        return np.zeros(0, np.uint64)
    last = data < 0x80
    ends = np.flatnonzero(last)
    if not last[-1] or int(np.diff(ends, prepend=-1).max()) > 10:
        raise ValueError("a number of more than 10 bytes")
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(data)) - np.repeat(starts, np.diff(ends, prepend=-1))
    # The tenth byte of a negative number overflows; no number here is negative.
    parts = (data & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(parts, starts)
