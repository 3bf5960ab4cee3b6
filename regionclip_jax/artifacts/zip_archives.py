"""Zip archives and ``.npz`` files of others: sizes are compared before anything is unpacked."""

import contextlib
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from regionclip_jax.artifacts.card_fields import CheckpointMismatch
from regionclip_jax.untrusted import most_bytes, reason, short

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
# Errors of the standard zip reader for a damaged archive.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
)


def damaged(path: Path, what: str) -> CheckpointMismatch:
    """Return the error for a damaged file."""
    return CheckpointMismatch(
        f"{path}: {what} (file of {path.stat().st_size} bytes); the file is damaged or cut short: "
        "download or copy it again and compare its size and checksum with the publisher's"
    )


@contextlib.contextmanager
def open_zip(path: Path, file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """Open an archive with entries of stated, plausible sizes.

    An entry never unpacks to more than its ``ZipInfo.file_size``.

    Raises:
        CheckpointMismatch: here or in the block, for a damaged archive, two entries with one name,
            an encrypted entry, another compression than deflate, or entries that state more than
            ``most_bytes`` of the file together.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _require_plain(path, archive)
            yield archive
    except CheckpointMismatch:
        raise
    except _ZIP_ERRORS as error:
        raise damaged(path, f"the zip archive does not open ({reason(error)})") from error


def _require_plain(path: Path, archive: zipfile.ZipFile) -> None:
    seen = set()
    for entry in archive.infolist():
        problem = None
        if entry.filename in seen:
            problem = "occurs more than once"
        elif entry.flag_bits & _ENCRYPTED:
            problem = "is encrypted"
        elif entry.compress_type not in _METHODS:
            problem = f"has the compression method {entry.compress_type}, neither 0 nor 8 (deflate)"
        if problem:
            raise CheckpointMismatch(
                f"{path}: the entry {short(entry.filename)} of the archive {problem}; save the "
                "file again with the program that made it"
            )
        seen.add(entry.filename)
    total, bound = sum(e.file_size for e in archive.infolist()), most_bytes(path.stat().st_size)
    if total > bound:
        raise CheckpointMismatch(
            f"{path}: expected a zip archive that unpacks to at most {bound:,} bytes, found one "
            f"that states {total:,}; save the file again without compression"
        )


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return arrays of an ``.npz`` file by name; no object is unpickled.

    Raises:
        CheckpointMismatch: as ``open_zip``; or an array is missing, holds objects, or states
            another size than its entry.
    """
    with path.open("rb") as file, open_zip(path, file) as archive:
        found = [name.removesuffix(".npy") for name in archive.namelist()]
        if missing := [name for name in names if name not in found]:
            raise CheckpointMismatch(
                f"{path}: expected the arrays {list(names)}, found {short(found)} without "
                f"{missing[0]!r}; make it again"
            )
        return {name: _read_npy(path, archive, name) for name in names}


def _read_npy(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    entry = archive.getinfo(f"{name}.npy")
    try:
        with archive.open(entry) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of .npy than 1.0")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            stated = file.tell() + math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError("objects, which only a pickle can hold")
        if stated != entry.file_size:
            raise ValueError(f"{stated:,} bytes are stated and {entry.file_size:,} present")
        with archive.open(entry) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    # NumPy evaluates the header as a literal of Python, and documents no errors of that.
    except Exception as error:
        raise damaged(path, f"the array {name!r} does not open ({reason(error)})") from error
