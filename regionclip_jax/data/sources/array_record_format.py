"""Format of prepared directories: encoded records, and the manifest.

Layout of a record: header length (uint32, little endian), header (UTF-8 JSON), then for a detection
record the boxes (float32), classes (int32) and crowd flags (uint8) in this order, then the encoded
image. The layout holds nothing executable, so untrusted files are safe to open.
"""

import hashlib
import json
import os
import pathlib
import struct

import numpy as np

from regionclip_jax.artifacts import digests
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord
from regionclip_jax.files import replace_text

MANIFEST = "manifest.json"
FORMAT = 1
# Folder in a directory that scripts/prepare_data.py has not completed.
UNFINISHED = "unfinished"

IMAGE_TEXT = "image_text"
DETECTION = "detection"

_LENGTH = struct.Struct("<I")


def kind_of(record: ImageTextRecord | DetectionRecord) -> str:
    """Return ``"image_text"`` or ``"detection"``, as written in a manifest."""
    return DETECTION if isinstance(record, DetectionRecord) else IMAGE_TEXT


def encode_record(record: ImageTextRecord | DetectionRecord) -> bytes:
    """Return the bytes that :func:`decode_record` reads."""
    header: dict = {"kind": kind_of(record), "key": record.key, "captions": list(record.captions)}
    if record.size is not None:
        header["size"] = list(record.size)
    arrays = b""
    if isinstance(record, DetectionRecord):
        header |= {"boxes": len(record.boxes), "image_id": int(record.image_id)}
        arrays = (
            np.asarray(record.boxes, "<f4").tobytes()
            + np.asarray(record.classes, "<i4").tobytes()
            + np.asarray(record.crowd, "u1").tobytes()
        )
    elif record.tags:
        header["tags"] = list(record.tags)
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"".join((_LENGTH.pack(len(text)), text, arrays, record.image))


def decode_record(data: bytes) -> ImageTextRecord | DetectionRecord:
    """Return the record that :func:`encode_record` wrote.

    Raises:
        ValueError: not an encoded record (too short, no JSON header, a missing field).
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        start = _LENGTH.size + length
        header = json.loads(data[_LENGTH.size : start].decode("utf-8", "surrogatepass"))
        captions = tuple(header["captions"])
        height, width = header.get("size", (None, None))
        size = None if height is None else (height, width)
        if header["kind"] == IMAGE_TEXT:
            tags = tuple(header.get("tags", ()))
            return ImageTextRecord(header["key"], data[start:], captions, tags, size)
        count = header["boxes"]
        boxes = np.frombuffer(data, "<f4", 4 * count, start).reshape(count, 4)
        classes = np.frombuffer(data, "<i4", count, start + 16 * count)
        crowd = np.frombuffer(data, "u1", count, start + 20 * count).astype(bool)
        image = data[start + 21 * count :]
        return DetectionRecord(
            header["key"], image, boxes, classes, crowd, header["image_id"], captions, size=size
        )
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{len(data)} bytes that are no encoded record: {type(error).__name__}: {error}"
        ) from error


def write_manifest(directory: pathlib.Path, manifest: dict) -> None:
    """Write the manifest and, before it, its digest; the manifest marks a complete directory."""
    text = json.dumps(manifest, indent=1)
    digests.write_digests(directory, (), texts={MANIFEST: text})
    replace_text(directory / MANIFEST, text)


def describe_damage(directory: pathlib.Path, entry: dict) -> str | None:
    """Compare a file with its ``name``, ``bytes`` and ``sha256`` in the manifest."""
    path = directory / entry["name"]
    if not path.is_file():
        return f"{path}: missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path}: {path.stat().st_size} bytes, expected {entry['bytes']}"
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry["sha256"]:
        return f"{path}: SHA-256 {found}, expected {entry['sha256']}"
    return None


def read_manifest(directory: str | os.PathLike) -> dict:
    """Return the manifest of a directory written by :func:`write_array_record`.

    Raises:
        FileNotFoundError: no such directory, or no manifest in it.
        ValueError: the manifest is of another format, or was changed after it was written.
    """
    path = pathlib.Path(directory) / MANIFEST
    if not path.is_file() and (path.parent / UNFINISHED).is_dir():
        raise FileNotFoundError(
            f"{path.parent} is not complete: run scripts/prepare_data.py again with the arguments "
            "it was begun with, and it goes on where it stopped"
        )
    if not path.is_file():
        what = "has no manifest.json" if path.parent.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{path.parent} {what}: expected a directory written by write_array_record; "
            "write it again or correct the path"
        )
    # Directories of older versions have no digest of their manifest.
    if damage := digests.find_damage(path.parent, names={MANIFEST}):
        raise ValueError(f"{damage[0]}: copy it again or write the directory again")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): write the directory again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is not a manifest of format {FORMAT}: write the directory again")
    return manifest
