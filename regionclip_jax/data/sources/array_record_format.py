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
from reprlib import repr as shown  # of bounded depth and length

import numpy as np
from jaxtyping import Float

from regionclip_jax.artifacts import digests
from regionclip_jax.data.sources.records import DetectionRecord, ImageTextRecord
from regionclip_jax.files import replace_text
from regionclip_jax.untrusted import open_regular, read_large_json

MANIFEST = "manifest.json"
FORMAT = 1
# Folder in a directory that scripts/prepare_data.py has not completed.
UNFINISHED = "unfinished"

IMAGE_TEXT = "image_text"
DETECTION = "detection"

_LENGTH = struct.Struct("<I")
_ID_LIMITS = -(2**63), 2**63 - 1
# More pixels than a side of any image; float32 holds it exactly.
_MOST_SIDE = 2**24
_REMEDY = "write the directory again"


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
        key, captions = _text(header["key"]), _texts(header["captions"])
        size = None
        if header.get("size") is not None:
            height, width = (_whole(side, 1, _MOST_SIDE) for side in header["size"])
            size = height, width
        if header["kind"] == IMAGE_TEXT:
            return ImageTextRecord(
                key, data[start:], captions, _texts(header.get("tags", [])), size
            )
        count = _whole(header["boxes"], 0, len(data))
        boxes = np.frombuffer(data, "<f4", 4 * count, start).reshape(count, 4)
        classes = np.frombuffer(data, "<i4", count, start + 16 * count)
        crowd = np.frombuffer(data, "u1", count, start + 20 * count).astype(bool)
        _require_boxes(boxes, size)
        image, image_id = data[start + 21 * count :], _whole(header["image_id"], *_ID_LIMITS)
        return DetectionRecord(key, image, boxes, classes, crowd, image_id, captions, size=size)
    # AttributeError: the header is no object.
    except (
        struct.error, KeyError, TypeError, ValueError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        raise ValueError(
            f"{len(data)} bytes that are no encoded record: {type(error).__name__}: {error}"
        ) from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {shown(value)}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of texts, found {shown(value)}")
    return tuple(map(_text, value))


def _whole(value: object, lowest: int, highest: int) -> int:
    if type(value) is not int or not lowest <= value <= highest:
        raise ValueError(
            f"expected a whole number from {lowest} to {highest}, found {shown(value)}"
        )
    return value


def _require_boxes(boxes: Float[np.ndarray, "G 4"], size: tuple[int, int] | None) -> None:
    """Refuse boxes that no source gives: sources clip them to their images and drop empty ones."""
    height, width = (_MOST_SIDE, _MOST_SIDE) if size is None else size
    # Written so that NaN is refused. A shrunk image's boxes are rounded.
    low, high = boxes[:, :2], boxes[:, 2:]
    if not ((low >= 0).all() and (low <= high).all() and (high <= (width + 1, height + 1)).all()):
        raise ValueError(f"expected boxes within the image, found {boxes[:3].tolist()}")


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
    with open_regular(path) as file:
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
        raise ValueError(f"{damage[0]}: {_REMEDY}")
    manifest = read_large_json(path, _REMEDY)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is not a manifest of format {FORMAT}: {_REMEDY}")
    shards, sizes = manifest.get("shards"), manifest.get("sizes")
    files = [*(shards if isinstance(shards, list) else [None]), *([sizes] if sizes else [])]
    for found, expected in (
        (manifest.get("kind") in (IMAGE_TEXT, DETECTION), f"kind {IMAGE_TEXT} or {DETECTION}"),
        (_is_count(manifest.get("count")), "the count of its records"),
        (isinstance(manifest.get("description"), dict), "a description, an object"),
        (all(map(_is_file, files)), "a list of shards, and perhaps sizes, with the names of files"),
        (_has_names(manifest), "category_names in the description to be texts, each once"),
    ):
        if not found:
            raise ValueError(f"{path}: expected {expected}: {_REMEDY}")
    return manifest


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**63


def _is_file(entry: object) -> bool:
    """Return True for an entry of a manifest that names a file of its own folder."""
    name = entry.get("name") if isinstance(entry, dict) else None
    return (
        isinstance(name, str)
        and bool(name)
        and name == pathlib.PurePath(name).name
        and "\0" not in name
    )


def _has_names(manifest: dict) -> bool:
    description = manifest.get("description")
    names = description.get("category_names", []) if isinstance(description, dict) else None
    return (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    )
