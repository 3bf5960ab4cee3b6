"""``digests.json``: size and SHA-256 of the files of a folder.

    {"format": 1, "files": {"state/d/0a1b": {"bytes": 123, "sha256": hex}, ...}}

It is written before the folder is declared complete, so a folder without it was written by an older
version and is not checked. Names are relative, with slashes.

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
_MOST_THREADS = 8


def digest(path: Path) -> dict:
    """Return ``bytes`` and ``sha256`` of a file."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}


def describe_difference(path: Path, expected: dict) -> str | None:
    """Compare a file with ``digest`` of when it was written; describe the difference, if any."""
    if not path.is_file():
        return f"{path}: missing"
    if (size := path.stat().st_size) != expected["bytes"]:
        return f"{path}: {size:,} bytes, expected {expected['bytes']:,}"
    if (found := digest(path)["sha256"]) != expected["sha256"]:
        return f"{path}: SHA-256 {found[:12]}, expected {expected['sha256'][:12]}"
    return None


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
    with _threads() as pool:
        found = pool.map(digest, files)
    names = (path.relative_to(folder).as_posix() for path in files)
    digests = dict(zip(names, found, strict=True))
    for name, text in (texts or {}).items():
        data = text.encode()
        digests[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
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
        expected = [
            (folder / name, {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])})
            for name, entry in sorted(content["files"].items())
            if names is None or name in names
        ]
        if names is not None and len(expected) < len(names):
            raise ValueError(f"none of {', '.join(names)}")
    except FileNotFoundError:
        return None
    # A flipped bit may also take a character, a key or a type.
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [
            f"{path}: expected digests of format {_FORMAT}, found something else ({reason(error)})"
        ]
    first, every = share
    with _threads() as pool:
        found = pool.map(lambda file: describe_difference(*file), expected[first::every])
        return [text for text in found if text is not None]


def _is_below(name: str) -> bool:
    return not os.path.isabs(name) and ".." not in name.split("/")


def _threads() -> concurrent.futures.ThreadPoolExecutor:
    # hashlib releases the lock of the interpreter.
    return concurrent.futures.ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
