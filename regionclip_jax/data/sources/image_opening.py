"""Open encoded images: listed formats only, and work in proportion to pixels and bytes.

A file of a few kilobytes can claim any size, repeat one scan a thousand times, or be a program that
Pillow gives to Ghostscript. The bounds of this module hold for every image that the package opens.
"""

import contextlib
import functools
import importlib
import io
import pathlib
import re
import warnings
from collections.abc import Iterator

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError, features

from regionclip_jax.untrusted import open_regular

# Their readers start no process. JPEG includes the several images of one file that
# cameras write (MPO).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Read as well where Pillow has the library (AVIF), or pillow-heif is installed (HEIF, the extra
# ``heic``). The brands that such files begin with tell why one cannot be opened.
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIF": (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"),
}
_REMEDIES = {
    "AVIF": "this Pillow reads no AVIF: install a newer one, or convert the file",
    "HEIF": 'HEIC needs pip install -e ".[heic]", or convert the file',
}
# More than nearly all cameras produce. A thread that decodes an image takes up to 16 bytes for each
# pixel, so 2.1 GB beside the encoded file; docs/hostile_files.md has the formats.
MOST_PIXELS = 2**27
# Largest encoded image; an uncompressed image of the most pixels has 400 MB.
MOST_BYTES = 2**29
# Largest part of a file that is read before the size of its image is known: Pillow joins the parts
# of metadata in a time that grows with the square of their length.
_MOST_HEADER = 2**24
# Largest number of Pillow's reads from a file; it reads the parts of metadata one by one in Python.
_MOST_READS = 2**18
# EXIF's own limit, one segment of a JPEG: each of its tags may be as long as all of it.
_MOST_EXIF = 2**16
_EXIF_KEYS = ("exif", "Raw profile type exif")
# A progressive JPEG has about ten scans, and each passes all pixels.
_MOST_SCANS = 64
_MOST_SCANNED_PIXELS = 16 * MOST_PIXELS

# Pillow decodes run lengths of BMP and some PPM in Python, a hundred times slower than in C.
_MOST_SLOW_PIXELS = 2**20

_JPEG = b"\xff\xd8"
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Markers of a JPEG with a length. Stuffed bytes, restart markers and a start of image have none.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_TILE_SIDES = 322, 323  # tags of a TIFF
_MOST_TILE = 2**22


@contextlib.contextmanager
def opened_image(file: bytes | pathlib.Path) -> Iterator[Image.Image]:
    """Open an image of a known size, whose pixels are not yet decoded.

    Args:
        file: the encoded image; or its path, to read its header only.

    Raises:
        ValueError: none of the formats, no pixels or too many, or a header, tiles or scans that
            take more work than the pixels. Pillow raises further exceptions for broken files.
        OSError: the file cannot be read.
    """
    with _Content(file) if isinstance(file, bytes) else _File(file) as reader:
        try:
            with warnings.catch_warnings():
                # Pillow warns of many pixels, and of each damaged tag.
                warnings.filterwarnings("ignore", module=r"PIL\.")
                image = Image.open(reader, formats=readable_formats())
        except UnidentifiedImageError:
            what = f"none of the formats {', '.join(readable_formats())}, or damaged"
            remedy = _missing_format(reader) or "convert or replace it"
            raise ValueError(f"{what}: {remedy}") from None
        with image:
            _require_plausible(image, file)
            reader.header = None
            yield image


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return the formats that this process reads; the first call registers pillow-heif."""
    formats: list[str] = list(FORMATS)
    if features.check("avif"):
        formats.append("AVIF")
    try:
        heif = importlib.import_module("pillow_heif")
    except ImportError:
        pass
    else:
        # Further images of a file are not used, and cost time and memory.
        heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
        formats.append("HEIF")
    return tuple(formats)


def _missing_format(reader: io.BufferedIOBase) -> str | None:
    """Return the remedy for a format that another installation reads; None for any other file."""
    try:
        reader.seek(0)
        head = reader.read(12)
    except (OSError, ValueError):
        return None
    for name, brands in _BRANDS.items():
        if head[4:8] == b"ftyp" and head[8:] in brands and name not in readable_formats():
            return _REMEDIES[name]
    return None


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image; 1 if it has none or cannot be read."""
    if image.format in ("TIFF", "HEIF"):  # Pillow and libheif turn it already
        return 1
    if any(len(image.info.get(key, "")) > _MOST_EXIF for key in _EXIF_KEYS):
        return 1
    try:
        # A PNG's own getexif would decode the image in search of late metadata.
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        return found if type(found) is int and 1 <= found <= 8 else 1
    except Exception:  # damaged metadata, which viewers ignore too
        return 1


class _Bounded(io.BufferedIOBase):
    """Reader of an encoded image that ends Pillow's work on endless metadata.

    Attributes:
        header: bytes that may still be read before the size of the image is known; then None.
    """

    header: int | None = _MOST_HEADER
    _reads = _MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        whole = size is None or size < 0  # a WebP, which is read at once and in C
        data = super().read(MOST_BYTES if whole else size)
        self._reads -= 1
        if self.header is not None and not whole:
            self.header -= len(data)
        if self._reads < 0 or (self.header or 0) < 0:
            raise ValueError("more metadata than an image has; encode the image again")
        return data


class _Content(_Bounded, io.BytesIO):
    """Encoded image in memory."""


class _File(_Bounded, io.BufferedReader):
    """Encoded image in a file."""

    def __init__(self, path: pathlib.Path):
        super().__init__(open_regular(path).detach())


def _require_plausible(image: Image.Image, file: bytes | pathlib.Path) -> None:
    pixels = image.width * image.height
    size = f"{image.height} x {image.width} (height x width)"
    if not pixels:
        raise ValueError(f"{size}, expected an image with pixels")
    if pixels > MOST_PIXELS:
        raise ValueError(f"{size} are more than {MOST_PIXELS} pixels; make the image smaller")
    tiles = getattr(image, "tile", ())  # how Pillow will decode it
    if pixels > _MOST_SLOW_PIXELS and any(tile[0] in Image.DECODERS for tile in tiles):
        raise ValueError(f"{size} in run lengths or as text; convert the image to PNG")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        width, height = (image.tag_v2.get(tag, 1) for tag in _TILE_SIDES)
        # The decoder's buffer holds a whole tile, also if the image has one pixel.
        if not 0 < width * height <= max(pixels, _MOST_TILE):
            raise ValueError(f"tiles of {height} x {width} pixels; convert the image to PNG")
    if isinstance(file, bytes) and file.startswith(_JPEG):
        scans = _count_scans(file)
        if scans > _MOST_SCANS or scans * pixels > _MOST_SCANNED_PIXELS:
            raise ValueError(
                f"a JPEG of {size} in {scans} scans, which all pass all pixels; encode it again"
            )


def _count_scans(data: bytes) -> int:
    """Return the number of scans in the first image of a JPEG."""
    scans = position = 0
    while found := _MARKER.search(data, position):
        marker, position = data[found.start() + 1], found.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        position += int.from_bytes(data[position : position + 2], "big")
    return scans
