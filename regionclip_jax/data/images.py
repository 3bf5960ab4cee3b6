"""Decode images to RGB pixels."""

import io
import pathlib
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from regionclip_jax.data.records import RecordError

# More than nearly all cameras produce, and 400 MB of RGB in each decoding thread. A file of a few
# kilobytes can claim any size.
MOST_PIXELS = 2**27


def decode_image(
    data: bytes, *, source: str, key: str, apply_orientation: bool = False
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode any format Pillow reads to RGB.

    Grayscale, palette and CMYK become RGB, alpha is dropped, an animation gives its first frame.

    Args:
        data: the encoded file.
        source, key: name the record in the error.
        apply_orientation: rotate the image by its EXIF orientation. The default keeps it as stored,
            like the boxes of COCO and the reference's pretraining
            (docs/reference/pretraining_data.md#images).

    Raises:
        RecordError: no image, a truncated one, or one of more than ``MOST_PIXELS``. (The
            reference fills the missing part of a truncated image with grey.)
    """
    try:
        with _open(io.BytesIO(data)) as image:
            if apply_orientation:
                image = ImageOps.exif_transpose(image)
            return to_rgb(image)
    # Pillow's readers raise many exceptions for broken files: OSError, SyntaxError, struct.error,
    # IndexError, zlib.error. All of them concern the file only.
    except Exception as error:
        what = f"{len(data)} bytes that Pillow cannot decode: {type(error).__name__}: {error}"
        raise RecordError(source, key, what) from error


def image_size(file: bytes | pathlib.Path) -> tuple[int, int] | None:
    """Return (height, width) from an image's header without decoding; None if unreadable."""
    try:
        with _open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return image.height, image.width
    except Exception:  # as in decode_image, which reports the reason later
        return None


def _open(file: io.BytesIO | pathlib.Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file)
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(
            f"{image.height} x {image.width} (height x width) are more than {MOST_PIXELS} pixels; "
            "make the picture smaller"
        )
    return image


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an opened image as stored: grayscale, palette and CMYK become RGB."""
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to 8, which turns most of the image white.
        gray = (np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))
