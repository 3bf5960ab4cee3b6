"""Tiles of a large image, and the merging of their detections."""

import itertools

import numpy as np
from jaxtyping import Bool, Float, Int


def tile_boxes(height: int, width: int, side: int, overlap: float) -> list[tuple[int, ...]]:
    """Return the tiles of an image as (x1, y1, x2, y2), row by row.

    Tiles have the side ``side``, or that of the image if it is smaller. The last tile of a row or
    column ends with the image, so it may overlap its neighbour more.

    Args:
        height, width: of the image, in pixels.
        side: of a tile, in pixels.
        overlap: share of the side that neighbours have in common, at least.

    Raises:
        ValueError: a side below 1, or an overlap that is not from 0 to below 1.
    """
    if side < 1:
        raise ValueError(f"tile: found {side}, expected 1 pixel or more")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: found {overlap}, expected a share from 0 to below 1")
    step = max(1, int(side * (1 - overlap)))
    rows, columns = (
        [*range(0, max(length - side, 0), step), max(length - side, 0)]
        for length in (height, width)
    )
    return [
        (x, y, min(x + side, width), min(y + side, height))
        for y, x in itertools.product(rows, columns)
    ]


def merge_tiles(
    boxes: Float[np.ndarray, "N 4"],
    scores: Float[np.ndarray, " N"],
    classes: Int[np.ndarray, " N"],
    tiles: Int[np.ndarray, " N"],
    threshold: float,
) -> Int[np.ndarray, " K"]:
    """Return the rows that greedy suppression across tiles keeps, best first.

    A detection is suppressed by a kept one of the same class, from another tile and with a higher
    score (of equal scores the first), if their common area is more than ``threshold`` of the
    smaller box. The smaller area, not the union: an edge of a tile may cut an object.

    Args:
        boxes: xyxy in pixels of the image, with areas.
        scores, classes, tiles: of the boxes. Detections of one tile were suppressed within it.
        threshold: share of the smaller area, 0 to 1.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, classes, tiles = boxes[order].astype(np.float64), classes[order], tiles[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: Bool[np.ndarray, " N"] = np.ones(len(boxes), bool)
    for row in range(len(boxes)):
        if not kept[row]:
            continue
        rest = slice(row + 1, None)
        rivals = kept[rest] & (classes[rest] == classes[row]) & (tiles[rest] != tiles[row])
        later = row + 1 + np.flatnonzero(rivals)
        low = np.maximum(boxes[row, :2], boxes[later, :2])
        high = np.minimum(boxes[row, 2:], boxes[later, 2:])
        common = np.clip(high - low, 0, None).prod(axis=1)
        kept[later[common > threshold * np.minimum(areas[row], areas[later])]] = False
    return order[kept]
