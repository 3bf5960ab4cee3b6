"""Masks of annotated objects over their own boxes, from polygons or run lengths in COCO's format.

pycocotools is not used to read run lengths: it reads and writes outside its memory if they are
damaged (version 2.0.11), which ends the process.
"""

from collections.abc import Mapping
from reprlib import repr as shown  # of bounded depth and length

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from regionclip_jax.data.sources.image_opening import MOST_PIXELS

# A longer number in COCO's text takes a time that grows with the square of its length.
_LONGEST_RUN = 64
# Pixels from the origin; formats of images have sides of at most 65,535.
_FARTHEST = 2**17
# Oversampling of the outlines; a cell is set if at least half of it is covered.
_FINER = 4


def object_mask(
    segmentation: object, box: Float[np.ndarray, " 4"], image_size: tuple[int, int], size: int
) -> UInt8[np.ndarray, "P P"]:
    """Return a mask of ``size`` x ``size`` cells over the box: 1 inside the object, else 0.

    Args:
        segmentation: COCO's list of polygons, ``[x1, y1, x2, y2, ...]`` in original pixels, or its
            run lengths of the whole image.
        box: xyxy in the same frame.
        image_size: (height, width) of the image.

    Raises:
        ValueError: neither a list of polygons of at least three points, nor the run lengths of an
            image of this size.
    """
    try:
        if isinstance(segmentation, dict):
            return _sample(decode_runs(segmentation, *image_size), box, size)
        return rasterize(segmentation, box, size)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{shown(segmentation)}: {error}") from error


def rasterize(
    segmentation: object, box: Float[np.ndarray, " 4"], size: int
) -> UInt8[np.ndarray, "P P"]:
    """Return the mask of ``object_mask`` from polygons."""
    if (
        not isinstance(segmentation, list)
        or not segmentation
        or not all(isinstance(p, list) and len(p) >= 6 and not len(p) % 2 for p in segmentation)
    ):
        raise ValueError(
            "expected a segmentation of polygons of at least three points, or of run lengths, "
            f"found {shown(segmentation)}"
        )
    fine = size * _FINER
    scale = fine / np.maximum(box[2:] - box[:2], 1e-6)
    canvas = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(canvas)
    for polygon in segmentation:
        require_near(polygon)
        # PIL's coordinates have their origin at the centre of the first pixel.
        points = (np.array(polygon, np.float64).reshape(-1, 2) - box[:2]) * scale - 0.5
        draw.polygon([tuple(point) for point in points], fill=1)
    return _cells(np.asarray(canvas), size)


def require_near(polygon: list) -> None:
    """Refuse a polygon that reaches far beyond any image: drawing takes the length of its outline.

    Raises:
        ValueError: a coordinate is no number, or not within ``_FARTHEST``.
    """
    for value in polygon:
        if type(value) not in (int, float) or not abs(value) <= _FARTHEST:
            raise ValueError(f"a polygon with the coordinate {shown(value)}, expected pixels")


def _sample(
    pixels: Bool[np.ndarray, "H W"], box: Float[np.ndarray, " 4"], size: int
) -> UInt8[np.ndarray, "P P"]:
    shares = (np.arange(size * _FINER) + 0.5) / (size * _FINER)
    columns, lines = (
        (box[axis] + shares * (box[axis + 2] - box[axis])).astype(int).clip(0, side - 1)
        for axis, side in ((0, pixels.shape[1]), (1, pixels.shape[0]))
    )
    return _cells(pixels[np.ix_(lines, columns)], size)


def _cells(fine: np.ndarray, size: int) -> UInt8[np.ndarray, "P P"]:
    cells = fine.reshape(size, _FINER, size, _FINER).sum((1, 3), dtype=int)
    return (2 * cells >= _FINER**2).astype(np.uint8)


def decode_runs(segmentation: Mapping, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Return the pixels of COCO's run lengths; raises as ``read_runs``."""
    runs = read_runs(segmentation, height, width)
    # The runs follow the columns, and the first one is background.
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def read_runs(segmentation: Mapping, height: int, width: int) -> list[int]:
    """Return COCO's run lengths, compressed as text or given as a list of numbers.

    Raises:
        ValueError: not such run lengths, or those of an image of another size.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(
            f"run lengths of size {shown(size)}, expected {[height, width]} (height, width)"
        )
    if height * width > MOST_PIXELS:
        raise ValueError(f"run lengths of {height} x {width}, more than {MOST_PIXELS} pixels")
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if (
        not isinstance(runs, list)
        or not all(type(run) is int and run >= 0 for run in runs)
        or sum(runs) != height * width
    ):
        raise ValueError(
            f"run lengths {shown(counts)}: expected numbers with the sum {height * width}, "
            "the pixels of the image"
        )
    return runs


def _decompress(text: str) -> list[int] | None:
    """Return run lengths from COCO's text: digits of five bits, lowest first, as differences.

    None for other characters and for numbers of more than ``_LONGEST_RUN`` bits.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > _LONGEST_RUN:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:  # the last digit of a number; its highest bit is the sign
            value -= (digit >> 4 & 1) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
