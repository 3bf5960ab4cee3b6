"""Prepare one record for storage: check it, measure it, and shrink it on request.

This finds broken records before training does.
"""

import dataclasses
import io
from typing import NamedTuple

from PIL import Image

from regionclip_jax.data.loading.decoding import decode_image_of, measure_image_of
from regionclip_jax.data.loading.examples import ImageLoading
from regionclip_jax.data.sources.array_record_format import encode_record, kind_of
from regionclip_jax.data.sources.records import (
    DetectionRecord,
    ImageTextRecord,
    RecordError,
    SizeMismatch,
    Source,
)
from regionclip_jax.ops.host_boxes import host_scale_boxes

# Reasons, as manifests on disk have them.
UNREADABLE = "unreadable record"
BROKEN_IMAGE = "broken picture"
NO_CAPTION = "no caption"
OTHER_SIZE = "image of another size than annotated"

JPEG_QUALITY = 95

_NO_LIMIT = 2**31


class Kept(NamedTuple):
    """Encoded record, its kind, and (height, width) of its image as decoded."""

    data: bytes
    kind: str
    size: tuple[int, int]


class Skipped(NamedTuple):
    """Skipped record. ``text`` names source, key and problem."""

    reason: str
    text: str


def prepare_record(
    source: Source, index: int, *, short_side: int | None, check: bool
) -> Kept | Skipped:
    """Read one record and return it encoded, or skipped.

    Args:
        short_side: images with a longer short side are stored as JPEG of this short side, in
            pixels, and their boxes are scaled. Other images, or all with None, keep their bytes.
        check: decode every image; otherwise read only its header.

    The kept record has the size of its image as decoded, so that its orientation is decided once.
    """
    try:
        record = source[index]
    except RecordError as error:
        return Skipped(UNREADABLE, str(error))
    name = repr(source)
    if isinstance(record, ImageTextRecord):
        if not any(text.strip() for text in (*record.captions, *record.tags)):
            found = f"{len(record.captions)} captions and {len(record.tags)} tags, all blank"
            return Skipped(NO_CAPTION, str(RecordError(name, record.key, found)))
    try:
        size = measure_image_of(record, name)
        if short_side is not None and min(size) > short_side:
            record, size = _shrink(record, short_side, name)
        elif check:
            decode_image_of(record, name)
    except SizeMismatch as error:
        return Skipped(OTHER_SIZE, str(error))
    except RecordError as error:
        return Skipped(BROKEN_IMAGE, str(error))
    record = dataclasses.replace(record, size=size)
    return Kept(encode_record(record), kind_of(record), size)


def _shrink(
    record: ImageTextRecord | DetectionRecord, short_side: int, source: str
) -> tuple[ImageTextRecord | DetectionRecord, tuple[int, int]]:
    images = ImageLoading((short_side,), _NO_LIMIT, "bicubic_truncate", canvas_sizes=())
    pixels, scale = images.resize(decode_image_of(record, source))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    changes: dict = {"image": file.getvalue()}
    if isinstance(record, DetectionRecord):
        changes["boxes"] = host_scale_boxes(record.boxes, scale)
    return dataclasses.replace(record, **changes), pixels.shape[:2]
