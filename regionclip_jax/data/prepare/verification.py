"""Verify every byte of a prepared directory against its manifest."""

import concurrent.futures
import os
import pathlib

from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.array_record_format import (
    MANIFEST,
    describe_damage,
    read_manifest,
)


def find_damage(directory: str | os.PathLike, num_threads: int) -> list[str]:
    """Read and hash all files that the manifest lists.

    Args:
        directory: written by ``prepare``.
        num_threads: threads that read and hash.

    Returns:
        A text for every file that is missing, changed or of another length; empty for an intact
        directory.

    Raises:
        FileNotFoundError: no such directory, or no manifest in it.
        ValueError: the manifest is damaged, has no checksums, or counts other records than the
            shards hold.
    """
    directory = pathlib.Path(directory)
    manifest = read_manifest(directory)
    files = [*manifest["shards"], *filter(None, [manifest.get("sizes")])]
    if not all({"bytes", "sha256"} <= file.keys() for file in files):
        raise ValueError(
            f"{directory / MANIFEST} has no checksums: only directories of scripts/prepare_data.py "
            "can be verified"
        )
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        found = pool.map(lambda file: describe_damage(directory, file), files)
        damage = [text for text in found if text is not None]
    if not damage:
        ArrayRecordSource(directory)
    return damage
