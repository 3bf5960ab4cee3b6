"""Write shards and manifests, and whole directories of records at once.

``preparation`` writes the same shards and manifests from several processes, and resumes.
"""

import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence

from array_record.python.array_record_module import ArrayRecordWriter

from regionclip_jax.data.sources.array_record_format import (
    FORMAT,
    MANIFEST,
    encode_record,
    kind_of,
    read_manifest,
    write_manifest,
)
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord

# One record per group gives random access; images are compressed already.
_OPTIONS = "group_size:1,uncompressed"


class ShardWriter:
    """Writer of one shard, as a context.

    Attributes:
        count: number of records.
        kinds: kinds of the records (``array_record_format.kind_of``).

    Raises:
        OSError or RuntimeError: when the context ends, if the disk is full.
    """

    def __init__(self, path: pathlib.Path):
        self._writer = ArrayRecordWriter(str(path), _OPTIONS)
        self.count, self.kinds = 0, set()

    def write(self, encoded: bytes, kind: str) -> None:
        """Append a record that ``encode_record`` encoded."""
        self._writer.write(encoded)
        self.count += 1
        self.kinds.add(kind)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_) -> None:
        self._writer.close()


def make_manifest(kind: str, shards: Sequence[dict], description: dict, **more: object) -> dict:
    """Return the manifest of a directory.

    Args:
        kind: kind of all its records.
        shards: ``name`` and ``count`` of each shard, and further JSON values.
        description: JSON values that determine the records.
        more: further entries, JSON values.
    """
    return {
        "format": FORMAT,
        "kind": kind,
        "count": sum(shard["count"] for shard in shards),
        "shards": list(shards),
        **more,
        "description": description,
    }


def write_array_record(
    records: Iterable[ImageTextRecord] | Iterable[DetectionRecord],
    directory: str | os.PathLike,
    shard_size: int,
    description: dict,
) -> dict:
    """Write records of one kind; the complete directory appears atomically.

    An existing complete directory with an equal description is kept; ``records`` is not touched.

    Args:
        directory: directory to create; its parent may be missing.
        shard_size: records per file.
        description: JSON values that determine the records (origin, settings). For detection
            records include ``category_names``: the source reads them from here.

    Returns:
        The manifest: ``format, kind, count, shards [{name, count}], description``.

    Raises:
        FileExistsError: the directory exists with other content.
        ValueError: no records, two kinds mixed, or ``shard_size`` below 1.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, found {shard_size}")
    directory = pathlib.Path(directory)
    description = json.loads(json.dumps(description))
    if directory.exists():
        return existing_manifest(directory, description)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(
        tempfile.mkdtemp(prefix=f".{directory.name}.partial-", dir=directory.parent)
    )
    try:
        partial.chmod(0o755)  # mkdtemp makes it private to this user
        manifest = _write_shards(iter(records), partial, shard_size, description)
        write_manifest(partial, manifest)
        try:
            partial.rename(directory)
        except OSError:
            if not directory.exists():
                raise
            return existing_manifest(directory, description)  # another process was faster
        return manifest
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.arrayrecord"


def existing_manifest(directory: pathlib.Path, description: dict) -> dict:
    """Return the manifest of a complete directory, which must hold ``description``.

    Raises:
        FileExistsError: the directory holds something else.
    """
    if not (directory / MANIFEST).is_file():
        raise FileExistsError(
            f"{directory} exists but holds no complete data set: delete it or choose another path"
        )
    manifest = read_manifest(directory)
    found = manifest["description"]
    if found != description:
        keys = sorted(k for k in found.keys() | description if found.get(k) != description.get(k))
        raise FileExistsError(
            f"{directory} holds another data set (differing in {', '.join(keys)}): "
            "delete it or choose another path"
        )
    return manifest


def _write_shards(records: Iterator, folder: pathlib.Path, size: int, description: dict) -> dict:
    shards, kinds = [], set()
    for number in itertools.count():
        first = next(records, None)
        if first is None:
            break
        name = shard_name(number)
        with ShardWriter(folder / name) as writer:
            for record in itertools.chain([first], itertools.islice(records, size - 1)):
                kinds.add(kind_of(record))
                if len(kinds) > 1:
                    raise ValueError(
                        f"record {record.key} is of another kind than those before it: "
                        "write image-text and detection records to two directories"
                    )
                writer.write(encode_record(record), kind_of(record))
        shards.append({"name": name, "count": writer.count})
    if not shards:
        raise ValueError("there are no records to write: check the source they come from")
    return make_manifest(kinds.pop(), shards, description)
