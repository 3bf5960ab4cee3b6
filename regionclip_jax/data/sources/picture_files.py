"""List and read image files in folders."""

import collections
import os
import pathlib
from collections.abc import Iterable

from regionclip_jax.data.records import RecordError


def present_files(folder: pathlib.Path, names: Iterable[str]) -> set[str]:
    """Return those of the names, relative to a folder, whose files exist.

    Every folder is listed once: on a network disk this is far faster than checking every file.
    """
    by_parent = collections.defaultdict(list)
    for name in names:
        parent, _, last = name.rpartition("/")
        by_parent[parent].append((last, name))
    present = set()
    for parent, wanted in by_parent.items():
        try:
            found = set(os.listdir(folder / parent))
        except (OSError, ValueError):  # ValueError: a NUL in the name
            continue
        present.update(name for last, name in wanted if last in found)
    return present


def read_image(path: pathlib.Path, source: str, key: str) -> bytes:
    """Return the bytes of an image file.

    Raises:
        RecordError: the file cannot be read; ``source`` and ``key`` name the record.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(source, key, f"cannot be read: {error}") from error
