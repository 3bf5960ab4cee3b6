"""Picture files in folders: which there are, and their bytes."""

import collections
import os
import pathlib
from collections.abc import Iterable

from regionclip_jax.data.records import RecordError


def present_files(folder: pathlib.Path, names: Iterable[str]) -> set[str]:
    """Those of the names, relative to a folder, that are there.

    Every folder is listed once, which on a network disk is far faster than a look at every file.
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
    """An encoded picture.

    Raises:
        RecordError: the file cannot be read; ``source`` and ``key`` name the record.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(source, key, f"cannot be read: {error}") from error
