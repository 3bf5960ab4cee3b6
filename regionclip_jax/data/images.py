"""Encoded pictures to RGB pixels."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from regionclip_jax.data.records import RecordError


def decode_image(
    data: bytes, *, source: str, key: str, apply_orientation: bool = False
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes any file Pillow reads: grayscale, palette and CMYK become RGB, alpha is dropped.

    Args:
        data: the file.
        source, key: name the record in the error.
        apply_orientation: turn the picture as its EXIF data says. The default leaves it as stored,
            like the reference (spec 4.4) and like the boxes of COCO.

    Raises:
        RecordError: no picture, a truncated one, or one too large to be honest. (The reference
            fills the missing part of a truncated picture with grey.)
    """
    with _opened(data, source, key) as image:
        if apply_orientation:
            image = ImageOps.exif_transpose(image)
        return to_rgb(image)


def read_size(data: bytes, *, source: str, key: str) -> tuple[int, int]:
    """(height, width) as :func:`decode_image` would give them, from the file's header alone.

    Raises:
        RecordError: no picture, or one too large to be honest.
    """
    with _opened(data, source, key) as image:
        return image.height, image.width


@contextlib.contextmanager
def _opened(data: bytes, source: str, key: str) -> Iterator[Image.Image]:
    """The file as Pillow opens it; what Pillow raises in here is a fault of the record."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                yield image
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,  # Pillow's word for a broken PNG chunk
    ) as error:
        what = f"{len(data)} bytes that Pillow cannot decode: {type(error).__name__}: {error}"
        raise RecordError(source, key, what) from error


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Pixels of an opened picture, as it is stored: grayscale, palette and CMYK become RGB."""
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits to 8, which turns most of the picture white.
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))
