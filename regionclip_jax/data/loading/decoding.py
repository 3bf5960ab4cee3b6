"""Decode images to RGB pixels."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from regionclip_jax.data.sources.image_files import open_image
from regionclip_jax.data.sources.records import RecordError

AnyImage = np.ndarray | Image.Image | str | Path


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
        with open_image(io.BytesIO(data)) as image:
            if apply_orientation:
                image = ImageOps.exif_transpose(image)
            return to_rgb(image)
    # Pillow's readers raise many exceptions for broken files: OSError, SyntaxError, struct.error,
    # IndexError, zlib.error. All of them concern the file only.
    except Exception as error:
        what = f"{len(data)} bytes that Pillow cannot decode: {type(error).__name__}: {error}"
        raise RecordError(source, key, what) from error


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an opened image as stored: grayscale, palette and CMYK become RGB."""
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to 8, which turns most of the image white.
        gray = (np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))


def read_any_image(image: AnyImage) -> np.ndarray:
    """Return an image as RGB uint8 [H, W, 3].

    Raises:
        RecordError: the file is not an image.
        ValueError: the array is not an image.
    """
    if isinstance(image, str | Path):
        path = Path(image)
        return decode_image(
            path.read_bytes(), source=str(path.parent), key=path.name, apply_orientation=True
        )
    if isinstance(image, Image.Image):
        return to_rgb(image)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.shape[2:] or (3,)) != (3,):
        raise ValueError(
            f"image: expected RGB uint8 [H, W, 3] or gray [H, W], found {pixels.dtype} "
            f"{list(pixels.shape)}; convert it, e.g. with PIL's convert('RGB')"
        )
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
