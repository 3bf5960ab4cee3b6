"""Anchors: the reference boxes of a region proposal network.

Source: docs/reference/localizers.md#anchors. NumPy computes them while a program is traced, since
they depend on shapes only.
"""

import math

import numpy as np
from jaxtyping import Float


def cell_anchors(
    sizes: tuple[int | float, ...], aspect_ratios: tuple[int | float, ...]
) -> Float[np.ndarray, "A 4"]:
    """Return the anchors of one cell, centred on (0, 0), all ratios of a size together.

    Args:
        sizes: square roots of the areas, in canvas pixels.
        aspect_ratios: height over width.
    """
    boxes = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size**2.0 / ratio)
            height = ratio * width
            boxes.append((-width / 2, -height / 2, width / 2, height / 2))
    return np.array(boxes, np.float64).reshape(-1, 4).astype(np.float32)


def grid_anchors(
    height: int, width: int, stride: int | float, cells: Float[np.ndarray, "A 4"]
) -> Float[np.ndarray, "anchors 4"]:
    """Return the anchors of one feature map, ordered by row, column and anchor of the cell.

    The anchors of cell (row, column) are centred on its top left corner,
    ``(column, row) * stride``. The maps of a padded canvas have anchors in the padding too.

    Args:
        height, width: cells of the map.
        stride: canvas pixels per cell.
        cells: anchors of a cell, from ``cell_anchors``.
    """
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    corners = stride * np.stack([x, y, x, y], -1).astype(np.float32)
    return (corners[:, :, None] + cells).reshape(-1, 4)
