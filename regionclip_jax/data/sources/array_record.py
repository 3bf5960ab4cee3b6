"""Source for directories of ArrayRecord shards that ``data.prepare`` wrote."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import cast

import grain
import numpy as np
from jaxtyping import Int

from regionclip_jax.data.sources.array_record_chunks import ChunkBounds, Part
from regionclip_jax.data.sources.array_record_format import (
    decode_record,
    describe_damage,
    kind_of,
    read_manifest,
)
from regionclip_jax.data.sources.records import (
    DetectionRecord,
    ImageTextRecord,
    RecordError,
    one_line,
)

_REMEDY = "copy it again or write the directory again"


class ArrayRecordSource:
    """Records of one directory of shards.

    Attributes:
        kind: ``"image_text"`` or ``"detection"``.
        description: JSON values from the writer that determine the records.
        category_names: names of the classes, for detection records whose description has them.

    Args:
        directory: written by ``write_array_record`` or ``prepare``.

    Raises:
        FileNotFoundError: the directory, its manifest or a file of it is missing.
        ValueError: the manifest or the sizes are damaged, the manifest and the files disagree, or a
            shard is cut or changed.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory = pathlib.Path(directory)
        manifest = read_manifest(self._directory)
        self.kind: str = manifest["kind"]
        self.description: dict = manifest["description"]
        self.category_names: tuple[str, ...] = tuple(self.description.get("category_names", ()))
        paths = [self._directory / shard["name"] for shard in manifest["shards"]]
        for path in paths:
            _require_file(path)
        for path, shard in zip(paths, manifest["shards"], strict=True):
            # Hashing would read everything. ArrayRecord compares a checksum at each read.
            if path.stat().st_size != (expected := shard.get("bytes", path.stat().st_size)):
                raise ValueError(
                    f"{path}: expected an ArrayRecord file of {expected} bytes, found one that is "
                    f"cut or changed ({path.stat().st_size} bytes): {_REMEDY}"
                )
        self._index = [
            manifest["shards"],
            [path.stat().st_size for path in paths],
            # Without the path of the source that was prepared.
            {key: value for key, value in self.description.items() if key != "source"},
        ]
        # The library unpacks the footers of all files when it opens them.
        self._bounds = ChunkBounds([Part(path) for path in paths])
        self._encoded = _open(paths)
        if len(self._encoded) != manifest["count"]:
            raise ValueError(
                f"{self._directory}: the manifest counts {manifest['count']} records, the shards "
                f"hold {len(self._encoded)}: write the directory again"
            )
        self._sizes = None
        if entry := manifest.get("sizes"):
            self._sizes = _read_sizes(self._directory, entry, manifest["count"])

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> ImageTextRecord | DetectionRecord:
        try:
            self._bounds.require(index)
            record = decode_record(self._encoded[index])
        except (ValueError, RuntimeError) as error:  # RuntimeError: a checksum of ArrayRecord's
            raise RecordError(repr(self), f"#{index}", str(error)) from error
        self._require_kind(record, index)
        if record.size is None and self._sizes is not None:
            # Prepared before records had sizes: the file has those at which images were decoded.
            height, width = self._sizes[index].tolist()
            record = dataclasses.replace(record, size=(height, width))
        return record

    def _require_kind(self, record: ImageTextRecord | DetectionRecord, index: int) -> None:
        """Raise RecordError for a record of another kind, or with a class that has no name."""
        if kind_of(record) != self.kind:
            what = f"is a record of {kind_of(record)}, expected {self.kind}"
            raise RecordError(repr(self), f"#{index}", what)
        if isinstance(record, DetectionRecord) and len(record.classes):
            low, high = int(record.classes.min()), int(record.classes.max())
            if low < 0 or self.category_names and high >= len(self.category_names):
                what = f"has classes {low} to {high} of {len(self.category_names)}"
                raise RecordError(repr(self), f"#{index}", what)

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes, classes and crowd flags of a detection record."""
        record = self[index]
        if not isinstance(record, DetectionRecord):
            raise RecordError(repr(self), f"#{index}", "has captions, expected boxes")
        return record.boxes, record.classes, record.crowd

    def index_parts(self) -> Iterator[bytes]:
        """Yield sizes, and checksums if known, of the shards; see ``fingerprint``."""
        yield json.dumps(self._index, sort_keys=True).encode()

    def sizes(self) -> Int[np.ndarray, "N 2"] | None:
        """Return (height, width) of every image as decoded; None if the directory has no sizes."""
        return self._sizes

    def __repr__(self) -> str:
        return f"ArrayRecordSource({str(self._directory)!r})"


def _require_file(path: pathlib.Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is named in the manifest but missing: copy it too")


def _read_sizes(directory: pathlib.Path, entry: dict, count: int) -> Int[np.ndarray, "N 2"]:
    path = directory / entry["name"]
    _require_file(path)
    if "sha256" in entry and (damage := describe_damage(directory, entry)):
        raise ValueError(f"{damage}: {_REMEDY}")
    try:
        # Mapped, because a header may claim an array of any size.
        sizes = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path}: expected an array ({one_line(error)}): {_REMEDY}") from error
    if (
        not isinstance(sizes, np.ndarray)
        or sizes.shape != (count, 2)
        or sizes.dtype.kind not in "iu"
        or not 1 <= sizes.min() <= sizes.max() < 2**31
    ):
        raise ValueError(
            f"{path}: expected whole numbers (height, width) of {count} images, found "
            f"{type(sizes).__name__} of shape {getattr(sizes, 'shape', None)}: {_REMEDY}"
        )
    return np.array(sizes, np.int32)


def _open(paths: list[pathlib.Path]) -> Sequence[bytes]:
    """Open all shards as one; name the damaged shard, which ArrayRecord's own error does not."""
    try:
        source = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
        return cast(Sequence[bytes], source)  # grain does not declare its base class
    except RuntimeError:
        for path in paths:
            try:
                grain.sources.ArrayRecordDataSource([str(path)])
            except RuntimeError as error:
                raise ValueError(
                    f"{path}: expected an ArrayRecord file, found one that is cut or changed "
                    f"({error}): {_REMEDY}"
                ) from error
        raise
