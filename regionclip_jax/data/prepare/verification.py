"""Verify every byte of a prepared directory against its manifest."""

import concurrent.futures
import hashlib
import os
import pathlib

from regionclip_jax.data.sources.array_record import ArrayRecordSource
from regionclip_jax.data.sources.array_record_format import MANIFEST, read_manifest
from regionclip_jax.files import open_regular


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
        ValueError: the manifest has no checksums, or its counts are not those of the shards.
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
        damage = [text for text in pool.map(lambda file: _damage(directory, file), files) if text]
    if not damage:
        ArrayRecordSource(directory)
    return damage


def _damage(directory: pathlib.Path, expected: dict) -> str | None:
    path = directory / expected["name"]
    if not path.is_file():
        return f"{path}: missing"
    if path.stat().st_size != expected["bytes"]:
        return f"{path}: {path.stat().st_size} bytes, expected {expected['bytes']}"
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected["sha256"]:
        return f"{path}: SHA-256 {digest}, expected {expected['sha256']}"
    return None
