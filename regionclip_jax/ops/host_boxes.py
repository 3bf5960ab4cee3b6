"""Boxes on the host: NumPy counterparts of ``ops.boxes``, for code that must not use the device.

Boxes are ``(x1, y1, x2, y2)``, as in ``ops.boxes``.
"""

import numpy as np
from jaxtyping import Float


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
