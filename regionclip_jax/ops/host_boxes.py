"""Boxes on the host: NumPy counterparts of ``ops.boxes``, for code that must not use the device.

Boxes are ``(x1, y1, x2, y2)``, as in ``ops.boxes``.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# A box is clipped if it loses more than this share of its area at the edge of its image.
_LOST = 0.1
# Fewer boxes are not judged by how many are clipped: a few objects may well lie at the edge.
_FEWEST_JUDGED = 4


class BoxFit:
    """Judge boxes against the sizes of their images, all together.

    A wrong format shows in most boxes of a set, and in no single one for certain.
    """

    def __init__(self):
        self._total = self._fractions = self._clipped = 0

    def add(self, box: Sequence[float], height: int, width: int) -> bool:
        """Count a box with an area; return False if it lies wholly outside its image."""
        x1, y1, x2, y2 = box
        inside_x, inside_y = min(x2, width) - max(x1, 0), min(y2, height) - max(y1, 0)
        overlaps = inside_x > 0 and inside_y > 0
        kept = inside_x * inside_y if overlaps else 0.0
        self._total += 1
        # Pascal VOC's corners may be one less.
        self._fractions += min(x1, y1) >= -1 and max(x2, y2) <= 1 < max(height, width)
        self._clipped += kept < (1 - _LOST) * (x2 - x1) * (y2 - y1)
        return overlaps

    def problem(self) -> str | None:
        """Return what is wrong with the format of the boxes, or None."""
        if self._total and self._fractions == self._total:
            return (
                f"all coordinates of the {self._total} boxes are within 0 and 1, expected pixels: "
                "multiply x by the width and y by the height of the image"
            )
        if self._total >= _FEWEST_JUDGED and 2 * self._clipped > self._total:
            return (
                f"{self._clipped} of {self._total} boxes reach beyond their image by more than "
                f"{_LOST:.0%} of their area: they have another format (corners x1, y1, x2, y2 "
                "instead of x, y, width, height, or the other way round), or belong to images of "
                "another size"
            )
        return None


def host_scale_boxes(
    boxes: Float[np.ndarray, "R 4"], scales: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, "R 4"]:
    """Multiply by the image's ``scales``, ordered (y, x), like ``ops.boxes.scale_boxes``."""
    return boxes * np.tile(np.asarray(scales, np.float32)[::-1], 2)


def host_pairwise_iou(
    boxes: Float[np.ndarray, "N 4"], others: Float[np.ndarray, "M 4"]
) -> Float[np.ndarray, "N M"]:
    """Return the IoU of every pair; 0 for two boxes without area.

    Areas keep the precision of their arrays; only ``ops.boxes`` follows the reference's rounding.
    """
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    common = np.clip(high - low, 0.0, None).prod(axis=2)
    areas = [(some[:, 2:] - some[:, :2]).prod(axis=1) for some in (boxes, others)]
    union = areas[0][:, None] + areas[1] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
