"""``digests.json``: size and SHA-256 of the files of a folder.

    {"format": 1, "files": {"state/d/0a1b": {"bytes": 123, "sha256": [hex, ...]}, ...}}

It is written before the folder is declared complete. So a folder without it was written by an older
version, and is not checked. Names are relative, with slashes. Each 16 MiB of a file have their own
digest, so that several threads hash a large file.

Digests are those of files, not of arrays. So a folder that several processes wrote is checked by
any number of them, before other code reads it, and an error names the damaged file. Processors with
instructions for SHA-256 compute it faster than the other strong functions of ``hashlib``.
"""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from regionclip_jax.files import replace_text
from regionclip_jax.untrusted import parse_json, reason, short

FILE_NAME = "digests.json"
_FORMAT = 1
_PART = 2**24
_BLOCK = 2**20
_MOST_THREADS = 16


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
    names = (path.relative_to(folder).as_posix() for path in files)
    digests = dict(zip(names, _digests(files), strict=True))
    for name, text in (texts or {}).items():
        data = text.encode()
        parts = [data[start : start + _PART] for start in range(0, len(data), _PART)]
        sha256 = [hashlib.sha256(part).hexdigest() for part in parts]
        digests[name] = {"bytes": len(data), "sha256": sha256}
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
        A text for every file that is missing or changed; None for a folder without digests.
    """
    path = folder / FILE_NAME
    try:
        content = parse_json(path.read_bytes())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {short(content['format'])}")
        if outside := [name for name in content["files"] if not _is_below(name)]:
            raise ValueError(f"the name {short(outside[0])} of a file elsewhere")
        expected = {
            folder / name: {"bytes": int(entry["bytes"]), "sha256": list(entry["sha256"])}
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
            f"{path}: expected digests of format {_FORMAT}, found something else ({reason(error)})"
        ]
    first, every = share
    expected = dict([*expected.items()][first::every])
    damage = {path: text for path, entry in expected.items() if (text := _cut(path, entry))}
    rest = [path for path in expected if path not in damage]
    for path, found in zip(rest, _digests(rest), strict=True):
        if found["sha256"] != expected[path]["sha256"]:
            damage[path] = f"{path}: changed since it was written (another SHA-256)"
    return [damage[path] for path in expected if path in damage]


def _is_below(name: str) -> bool:
    return not os.path.isabs(name) and ".." not in name.split("/")


def _cut(path: Path, expected: dict) -> str | None:
    if not path.is_file():
        return f"{path}: missing"
    if (size := path.stat().st_size) != expected["bytes"]:
        return f"{path}: {size:,} bytes, expected {expected['bytes']:,}"
    return None


def _digests(files: Collection[Path]) -> list[dict]:
    """Return ``bytes`` and ``sha256`` of each file."""
    sizes = [path.stat().st_size for path in files]
    # hashlib releases the lock of the interpreter.
    with concurrent.futures.ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        parts = [
            [pool.submit(_sha256, path, start) for start in range(0, size, _PART)]
            for path, size in zip(files, sizes, strict=True)
        ]
        return [
            {"bytes": size, "sha256": [part.result() for part in own]}
            for size, own in zip(sizes, parts, strict=True)
        ]


def _sha256(path: Path, start: int) -> str:
    """Return the SHA-256 of the part of a file that begins at ``start``."""
    found, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        left = _PART
        while left and (count := file.readinto(block[:left])):
            found.update(block[:count])
            left -= count
    return found.hexdigest()
