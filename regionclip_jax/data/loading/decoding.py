"""Decode images to RGB pixels."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from regionclip_jax.data.sources.image_files import (
    Frame,
    Size,
    image_frame,
    read_image,
    size_mismatch,
)
from regionclip_jax.data.sources.image_opening import opened_image
from regionclip_jax.data.sources.records import (
    DetectionRecord,
    ImageTextRecord,
    RecordError,
    SizeMismatch,
)

AnyImage = np.ndarray | Image.Image | str | Path
# 65535 is white in an image of 16 bits. Values below this are not of 16 bits: such a file holds the
# unscaled 8 to 14 bits of a camera or scanner, and would become nearly black.
_LEAST_WHITE = 2**14
# Pixels that are converted at once.
_BAND = 2**20
# Transposition of an image -> view of the turned pixels as they are stored.
_AS_STORED = {
    None: lambda turned: turned,
    Image.Transpose.FLIP_LEFT_RIGHT: lambda turned: turned[:, ::-1],
    Image.Transpose.ROTATE_180: lambda turned: turned[::-1, ::-1],
    Image.Transpose.FLIP_TOP_BOTTOM: lambda turned: turned[::-1],
    Image.Transpose.TRANSPOSE: lambda turned: turned.swapaxes(0, 1),
    Image.Transpose.ROTATE_270: lambda turned: turned[:, ::-1].swapaxes(0, 1),
    Image.Transpose.TRANSVERSE: lambda turned: turned[::-1, ::-1].swapaxes(0, 1),
    Image.Transpose.ROTATE_90: lambda turned: turned[::-1].swapaxes(0, 1),
}


def decode_image_of(
    record: ImageTextRecord | DetectionRecord, source: str
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode the image of a record, in the frame of its boxes.

    Args:
        source: ``repr`` of the source, for the error.

    Raises:
        SizeMismatch: the boxes were annotated at another size.
        RecordError: as ``decode_image``.
    """
    with _opened(record.image, source, record.key) as image:
        return _pixels(image, _frame_of(image, record, source))


def measure_image_of(record: ImageTextRecord | DetectionRecord, source: str) -> Size:
    """Return (height, width) of a record's image as decoded, from its header.

    Raises:
        SizeMismatch: as ``decode_image_of``.
        RecordError: the header cannot be read.
    """
    with _opened(record.image, source, record.key) as image:
        return _frame_of(image, record, source).size


def _frame_of(image: Image.Image, record: ImageTextRecord | DetectionRecord, source: str) -> Frame:
    frame = image_frame(image, record.size)
    # Captions fit an image of any size.
    if isinstance(record, DetectionRecord) and record.size is not None:
        if text := size_mismatch(frame.size, record.size):
            raise SizeMismatch(source, record.key, text)
    return frame


def decode_image(data: bytes, *, source: str, key: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image of one of ``image_opening.FORMATS`` to RGB, turned by its EXIF orientation.

    Grayscale, palette and CMYK become RGB, alpha is dropped, an animation gives its first frame.

    Args:
        data: the encoded file.
        source, key: name the record in the error.

    Raises:
        RecordError: no image, a truncated one, one beyond the bounds of ``image_opening``, or
            values whose white is unknown (``to_rgb``). (The reference fills the missing part of a
            truncated image with grey.)
    """
    with _opened(data, source, key) as image:
        return _pixels(image, image_frame(image))


def _pixels(image: Image.Image, frame: Frame) -> UInt8[np.ndarray, "H W 3"]:
    pixels = np.empty((*frame.size, 3), np.uint8)
    _write_rgb(image, _AS_STORED[frame.transposition](pixels))
    return pixels


@contextlib.contextmanager
def _opened(data: bytes, source: str, key: str) -> Iterator[Image.Image]:
    """Open an encoded image; whatever fails in the context is a RecordError."""
    try:
        with opened_image(data) as image:
            yield image
    except RecordError:
        raise
    # Pillow's readers raise many exceptions for broken files: OSError, SyntaxError, struct.error,
    # IndexError, zlib.error. All of them concern the file only.
    except Exception as error:
        what = f"{len(data)} bytes that cannot be decoded: {type(error).__name__}: {error}"
        raise RecordError(source, key, what) from error


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an opened image as stored: grayscale, palette and CMYK become RGB.

    White is 65535 in images of 16 and 32 bits, and 1.0 in images of floats.

    Raises:
        ValueError: the values have another white: 16 or 32 bits that use 14 bits or fewer or exceed
            65535, floats outside 0 to 1.
    """
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    _write_rgb(image, pixels)
    return pixels


def _write_rgb(image: Image.Image, out: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write the pixels of ``to_rgb`` band by band: Pillow's own copies take 14 bytes a pixel."""
    # Read before decoding: Pillow drops the low bits of 16-bit colours as it decodes them.
    cut = any(re.search(";16[BLN]", str(tile[3])) for tile in getattr(image, "tile", ()))
    rows = max(1, _BAND // image.width)
    limits: list = []
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        band = image.crop((0, top, image.width, bottom))
        if image.mode == "F" or image.mode.startswith("I"):
            # Pillow would clip 16 bits to 8, which turns most of the image white.
            values = np.asarray(band)
            limits += values.min(), values.max()
            if image.mode == "F":
                _require_fractions(min(limits), max(limits))
                values = (values * 255).round()
            else:
                values = values >> 8
            out[top:bottom] = values.astype(np.uint8)[..., None]
        else:
            out[top:bottom] = np.asarray(band if image.mode == "RGB" else band.convert("RGB"))
    if image.mode.startswith("I"):
        _require_white(min(limits), max(limits))
    elif cut:
        _require_white(0, int(out.max()) << 8)


def _require_fractions(lowest: float, highest: float) -> None:
    # Written so that NaN is refused.
    if not (lowest >= 0 and highest <= 1):
        raise ValueError(
            f"floats from {lowest:g} to {highest:g}, expected 0 to 1: convert the image to 8 bits"
        )


def _require_white(lowest: int, highest: int) -> None:
    if lowest < 0 or not _LEAST_WHITE <= highest <= 0xFFFF:
        raise ValueError(
            f"values of more than 8 bits from {lowest} to {highest}, expected the range of 16 bits "
            f"with a largest value from {_LEAST_WHITE} to 65535: convert the image to 8 bits"
        )


def _require_pixels(*sides: int) -> None:
    if 0 in sides:
        raise ValueError(f"image: {list(sides)} (height, width), expected pixels")


def read_any_image(image: AnyImage) -> np.ndarray:
    """Return an image as RGB uint8 [H, W, 3].

    Raises:
        RecordError: the file is not an image.
        ValueError: the array is not an image, or as ``to_rgb``.
    """
    if isinstance(image, str | Path):
        path = Path(image)
        return decode_image(
            read_image(path, str(path.parent), path.name), source=str(path.parent), key=path.name
        )
    if isinstance(image, Image.Image):
        _require_pixels(image.height, image.width)
        return to_rgb(image)
    pixels = np.asarray(image)
    _require_pixels(*pixels.shape[:2])
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.shape[2:] or (3,)) != (3,):
        raise ValueError(
            f"image: expected RGB uint8 [H, W, 3] or gray [H, W], found {pixels.dtype} "
            f"{list(pixels.shape)}; convert it, e.g. with PIL's convert('RGB')"
        )
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
