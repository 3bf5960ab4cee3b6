"""``digests.json``: size and CRC-32 of the files of a folder.

    {"format": 2, "files": {"state/d/0a1b": {"bytes": 123, "crc32": [hex, ...]}, ...}}

Format 1, which is still read, has ``sha256`` in the place of ``crc32``.

It is written before the folder is declared complete. So a folder without it was written by an older
version, and is not checked. Names are relative, with slashes. Each 16 MiB of a file have their own
digest, so that several threads hash a large file.

Digests are those of files, not of arrays. So a folder that several processes wrote is checked by
any number of them, before other code reads it, and an error names the damaged file.

They find accidents: who changes a file on purpose can change its digest beside it. CRC-32 finds
every change of up to 32 adjacent bits, and misses another one in 2**32. It costs about a third of
the time of SHA-256, and a check must be short beside the load that follows it.
"""

import concurrent.futures
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from regionclip_jax.files import replace_text
from regionclip_jax.untrusted import parse_json, reason, short

FILE_NAME = "digests.json"
_FORMAT = 2
_PART = 2**24
_BLOCK = 2**18  # fits the cache of one core
_MOST_THREADS = 16


class _Crc32:
    """CRC-32 with the methods of a hash of ``hashlib``."""

    def __init__(self, data: bytes = b"") -> None:
        self._value = zlib.crc32(data)

    def update(self, data: memoryview) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


# Key and function of the digest of a part, by format.
_FUNCTIONS = {1: ("sha256", hashlib.sha256), 2: ("crc32", _Crc32)}


def write_digests(
    folder: Path, files: Iterable[Path], *, texts: Mapping[str, str] | None = None
) -> None:
    """Write the digests of complete files in ``folder`` or below it.

    Args:
        files: they must not change later.
        texts: content by name of files that ``files.replace_text`` writes after the digests, such
            as one that marks a complete folder.
    """
    files = sorted(files)
    key, function = _FUNCTIONS[_FORMAT]
    digests = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            key: [part.result() for part in parts],
        }
        for path, parts in zip(files, _hashed(files, function), strict=True)
    }
    for name, text in (texts or {}).items():
        data = text.encode()
        parts = [data[start : start + _PART] for start in range(0, len(data), _PART)]
        digests[name] = {"bytes": len(data), key: [function(part).hexdigest() for part in parts]}
    content = {"format": _FORMAT, "files": digests}
    replace_text(folder / FILE_NAME, json.dumps(content, indent=1) + "\n")


def find_damage(
    folder: Path, *, names: Collection[str] | None = None, share: tuple[int, int] = (0, 1)
) -> list[str] | None:
    """Compare a folder with its digests.

    Args:
        names: files to check; None checks all.
        share: (k, n) checks every n-th file from the k-th on, so that n processes divide the work.

    Returns:
        A text for every file that is missing, changed or unreadable; None for a folder without
        digests.
    """
    path = folder / FILE_NAME
    try:
        content = parse_json(path.read_bytes())
        if content["format"] not in _FUNCTIONS:
            raise ValueError(f"format {short(content['format'])}")
        key, function = _FUNCTIONS[content["format"]]
        if outside := [name for name in content["files"] if not _is_below(name)]:
            raise ValueError(f"the name {short(outside[0])} of a file elsewhere")
        expected = {
            folder / name: {"bytes": int(entry["bytes"]), "parts": list(entry[key])}
            for name, entry in sorted(content["files"].items())
            if names is None or name in names
        }
        if names is not None and len(expected) < len(names):
            raise ValueError(f"not all of {', '.join(names)}")
    except FileNotFoundError:
        return None
    # A flipped bit may also take a character, a key or a type.
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [
            f"{path}: expected digests of a format from 1 to {_FORMAT}, found something else "
            f"({reason(error)})"
        ]
    first, every = share
    expected = dict([*expected.items()][first::every])
    damage = {path: text for path, entry in expected.items() if (text := _cut(path, entry))}
    rest = [path for path in expected if path not in damage]
    for path, parts in zip(rest, _hashed(rest, function), strict=True):
        try:
            if [part.result() for part in parts] != expected[path]["parts"]:
                damage[path] = f"{path}: changed since it was written (another digest)"
        except OSError as error:  # such as a bad block of the disk
            damage[path] = f"{path}: cannot be read ({error})"
    return [damage[path] for path in expected if path in damage]


def _is_below(name: str) -> bool:
    return not os.path.isabs(name) and ".." not in name.split("/")


def _cut(path: Path, expected: dict) -> str | None:
    if not path.is_file():
        return f"{path}: missing"
    if (size := path.stat().st_size) != expected["bytes"]:
        return f"{path}: {size:,} bytes, expected {expected['bytes']:,}"
    return None


def _hashed(files: Collection[Path], function: Callable) -> list[list[concurrent.futures.Future]]:
    """Return the digest of each part of each file."""
    # hashlib and zlib release the lock of the interpreter.
    with concurrent.futures.ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        return [
            [
                pool.submit(_digest, path, start, function)
                for start in range(0, path.stat().st_size, _PART)
            ]
            for path in files
        ]


def _digest(path: Path, start: int, function: Callable) -> str:
    """Return the digest of the part of a file that begins at ``start``."""
    found, block = function(), memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        left = _PART
        while left and (count := file.readinto(block[:left])):
            found.update(block[:count])
            left -= count
    return found.hexdigest()
