"""Measure the read speed of a source, and of the same records in ArrayRecord."""

import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from regionclip_jax.data.loading.decoding import decode_image_of
from regionclip_jax.data.prepare.writers import write_array_record
from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.records import RecordError, Source


class ReadSpeed(NamedTuple):
    """Records per second of one core, and the mean file size of an image in bytes."""

    source: float
    array_record: float
    decoding: float
    image_bytes: float

    @property
    def gain(self) -> float:
        """Speed-up of reading and decoding on one core with ArrayRecord instead of the source."""
        return (1 / self.source + 1 / self.decoding) / (1 / self.array_record + 1 / self.decoding)


def measure_reading(source: Source, folder: str | os.PathLike, num_records: int) -> ReadSpeed:
    """Read random records in random order, as training does, and once more from ArrayRecord.

    The page cache makes the source look faster. The ArrayRecord copy is dropped from the cache
    before it is read, if the file system allows it.

    Args:
        folder: existing folder on the disk of the prepared data, for the temporary copy.
        num_records: number of records to read.

    Raises:
        ValueError: no record could be read and decoded.
    """
    rng = np.random.default_rng(0)
    sample = rng.permutation(len(source))[:num_records].tolist()
    records, reading = _timed(lambda index: source[index], sample)
    name = repr(source)
    images, decoding = _timed(lambda record: decode_image_of(record, name).shape, records)
    if not images:
        raise ValueError(f"none of {len(sample)} records of {name} could be read and decoded")
    with tempfile.TemporaryDirectory(prefix=".read-speed-", dir=folder) as scratch:
        written = pathlib.Path(scratch) / "sample"
        write_array_record(records, written, len(records), {})
        for file in written.iterdir():
            _forget(file)
        prepared = ArrayRecordSource(written)
        _, prepared_reading = _timed(
            lambda index: prepared[index], rng.permutation(len(prepared)).tolist()
        )
    return ReadSpeed(
        source=reading,
        array_record=prepared_reading,
        decoding=decoding,
        image_bytes=float(np.mean([len(record.image) for record in records])),
    )


def _timed(work: Callable, items: Iterable) -> tuple[list, float]:
    """Return the results without skipped records, and items per second."""
    results, count, began = [], 0, time.perf_counter()
    for item in items:
        count += 1
        try:
            results.append(work(item))
        except RecordError:
            continue
    return results, count / max(time.perf_counter() - began, 1e-9)


def _forget(path: pathlib.Path) -> None:
    """Sync a file to disk and drop it from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
