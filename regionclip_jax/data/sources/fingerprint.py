"""Fingerprint of a source's content, which tells on resume whether the data are the same.

It depends on the records, not on the folder that holds them, so data may move. It reads few images,
to be cheap for sets of any size: 16 records spread over the source, and what the source knows
without opening images (``index_parts``: names, sizes, captions, boxes, offsets in shards).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from regionclip_jax.data.sources.records import DetectionRecord, RecordError, Source

_NUM_SAMPLES = 16


@runtime_checkable
class HasIndex(Protocol):
    """Source that knows more about its records than their number without opening images."""

    def index_parts(self) -> Iterable[bytes]:
        """Yield names, sizes and annotations of all records, without the path of the source."""
        ...


def content_facts(source: Source) -> dict[str, object]:
    """Return the JSON facts about a source that must be the same when a run resumes."""
    return {"records": len(source), "data": fingerprint(source)}


def fingerprint(source: Source) -> str:
    """Return a hash of a source's content, 16 hexadecimal digits."""
    digest = hashlib.sha256(f"{len(source)}".encode())
    for part in _parts(source):
        # With its length, so that bytes never pass from one part to the next unseen.
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]


def _parts(source: Source) -> Iterator[bytes]:
    if isinstance(source, HasIndex):
        yield from source.index_parts()
    for index in np.linspace(0, len(source) - 1, _NUM_SAMPLES).astype(int).tolist():
        try:
            record = source[index]
        except RecordError:
            yield b"unreadable"
            continue
        yield record.image
        if isinstance(record, DetectionRecord):
            yield from (record.boxes.tobytes(), record.classes.tobytes(), record.crowd.tobytes())
        else:
            yield json.dumps([record.captions, record.tags]).encode()
