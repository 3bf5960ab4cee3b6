"""Encoded pictures to RGB pixels."""

import io
import pathlib
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from regionclip_jax.data.records import RecordError

# More than any camera makes but few, and 400 MB of RGB in each thread that decodes. A file of a few
# kilobytes can claim any size.
MOST_PIXELS = 2**27


def decode_image(
    data: bytes, *, source: str, key: str, apply_orientation: bool = False
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes any file Pillow reads, whatever its name: grayscale, palette and CMYK become RGB,
    alpha is dropped, and of an animation the first picture is taken.

    Args:
        data: the file.
        source, key: name the record in the error.
        apply_orientation: turn the image as its EXIF data says. The default leaves it as stored,
            like the boxes of COCO and like the reference's pretraining
            (docs/reference/pretraining_data.md#images).

    Raises:
        RecordError: no picture, a truncated one, or one of more than ``MOST_PIXELS``. (The
            reference fills the missing part of a truncated picture with grey.)
    """
    try:
        with _open(io.BytesIO(data)) as image:
            if apply_orientation:
                image = ImageOps.exif_transpose(image)
            return to_rgb(image)
    # Pillow's readers raise what they please at broken files: OSError, SyntaxError, struct.error,
    # IndexError, zlib.error; none of it is about anything but the file.
    except Exception as error:
        what = f"{len(data)} bytes that Pillow cannot decode: {type(error).__name__}: {error}"
        raise RecordError(source, key, what) from error


def image_size(file: bytes | pathlib.Path) -> tuple[int, int] | None:
    """(height, width) as a picture's header says, without decoding; None where it says nothing."""
    try:
        with _open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return image.height, image.width
    except Exception:  # as in decode_image, which will say what it is
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
    """Pixels of an opened picture, as it is stored: grayscale, palette and CMYK become RGB."""
    if image.mode.startswith("I"):
        # 16 bits, which Pillow would clip to 8, so that most of the picture turned white.
        gray = (np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))
