"""Rasterize the segmentations of annotation files over each object's box."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

# Oversampling of the polygons; a cell is set if at least half of it is covered.
_FINER = 4


def rasterize(
    segmentation: object, box: Float[np.ndarray, " 4"], size: int
) -> UInt8[np.ndarray, "P P"]:
    """Return a mask of ``size`` x ``size`` cells over the box: 1 inside the object, else 0.

    Args:
        segmentation: COCO's list of polygons, ``[x1, y1, x2, y2, ...]`` in original pixels.
        box: xyxy in the same frame.

    Raises:
        ValueError: not a list of polygons of at least three points.
    """
    if (
        not isinstance(segmentation, list)
        or not segmentation
        or not all(isinstance(p, list) and len(p) >= 6 and not len(p) % 2 for p in segmentation)
    ):
        raise ValueError(
            "expected a segmentation of polygons of at least three points, found "
            f"{str(segmentation)[:60]!r}"
        )
    fine = size * _FINER
    scale = fine / np.maximum(box[2:] - box[:2], 1e-6)
    canvas = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(canvas)
    for polygon in segmentation:
        # PIL's coordinates have their origin at the centre of the first pixel.
        points = (np.array(polygon, np.float64).reshape(-1, 2) - box[:2]) * scale - 0.5
        draw.polygon([tuple(point) for point in points], fill=1)
    cells = np.asarray(canvas).reshape(size, _FINER, size, _FINER).sum((1, 3))
    return (2 * cells >= _FINER**2).astype(np.uint8)


def crop_masks(
    masks: UInt8[np.ndarray, "G P P"],
    boxes: Float[np.ndarray, "G 4"],
    parts: Float[np.ndarray, "G 4"],
) -> UInt8[np.ndarray, "G P P"]:
    """Resample masks over ``boxes`` to masks over ``parts`` of the boxes (nearest cell)."""
    size = masks.shape[-1]
    middles = (np.arange(size) + 0.5) / size
    found = np.zeros_like(masks)
    for row, (box, part) in enumerate(zip(boxes, parts, strict=True)):
        columns, lines = (
            ((part[i] + middles * (part[i + 2] - part[i]) - box[i]) / (box[i + 2] - box[i]) * size)
            .astype(int)
            .clip(0, size - 1)
            for i in (0, 1)
        )
        found[row] = masks[row][np.ix_(lines, columns)]
    return found
