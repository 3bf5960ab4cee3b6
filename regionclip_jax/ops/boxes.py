"""Boxes: area, intersection over union, clipping, scaling, validity.

Boxes are float32 ``(x1, y1, x2, y2)`` of continuous coordinates: a width is ``x2 - x1`` without
"+1" and the right edge of an image of ``w`` pixels is ``w``
(docs/reference/detection.md#comparisons).

Comparing an IoU with a threshold is a matter of single bits where boxes come from a grid, so areas
and unions are rounded to float32 after every operation, as in the reference. Compilers like to fuse
a product and a sum into one instruction that rounds once (XLA does on CPUs); ``_rounded`` stops it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def box_area(boxes: Float[Array, "*B R 4"]) -> Float[Array, "*B R"]:
    """Width times height, as they are: negative for boxes inverted along one axis."""
    return _rounded((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))


def intersection_and_union(
    boxes: Float[Array, "*B N 4"], others: Float[Array, "*B M 4"]
) -> tuple[Float[Array, "*B N M"], Float[Array, "*B N M"]]:
    """Areas of the intersection and the union of every pair.

    The intersection of boxes that only touch, or of which one is empty or inverted, is 0; the union
    is then the sum of their areas, which may be 0 or negative. NaN coordinates give a NaN union.
    """
    low = jnp.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    high = jnp.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    sides = jnp.maximum(high - low, 0.0)
    intersection = _rounded(sides[..., 0] * sides[..., 1])
    union = box_area(boxes)[..., :, None] + box_area(others)[..., None, :] - intersection
    return intersection, union


def iou_exceeds(
    intersection: Float[Array, "*pairs"], union: Float[Array, "*pairs"], threshold: float
) -> Bool[Array, "*pairs"]:
    """``intersection / union > threshold``: the quotient rounded to float32, against a real number.

    Decided without dividing: a GPU's quotient may be off by a bit, so that a box's IoU with itself
    is not 1 (openxla/xla#37181). With t the largest float32 up to the threshold and m the middle
    between t and the next float32, the quotient rounds to more than t just if it is more than m (it
    cannot equal m, which has one bit too many), that is if ``intersection > m * union``. With both
    factors cut into halves of at most 12 bits, all partial products are exact, and so are their
    differences where the decision is close.

    Args:
        intersection, union: as from ``intersection_and_union``.
        threshold: between 0 and 1.

    Returns:
        False where nothing intersects or something is NaN.

    Raises:
        ValueError: the threshold is not between 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"IoU threshold {threshold}: expected a number from 0 to 1")
    low = np.float32(threshold)
    if float(low) > threshold:
        low = np.nextafter(low, np.float32(-1))
    if low < 1e-20:  # The middle would be too small for its halves, and any quotient is more.
        return intersection > 0
    middle = (float(low) + float(np.nextafter(low, np.float32(2)))) / 2
    unit = 2.0 ** (math.floor(math.log2(middle)) - 11)
    middle_high = np.float32(round(middle / unit) * unit)
    middle_low = np.float32(middle - float(middle_high))
    union_high = jax.lax.reduce_precision(union, exponent_bits=8, mantissa_bits=11)
    union_low = union - union_high
    excess = intersection - middle_high * union_high - middle_high * union_low
    excess = excess - middle_low * union_high - middle_low * union_low
    return (intersection > 0) & (excess > 0)


def pairwise_iou(
    boxes: Float[Array, "*B N 4"], others: Float[Array, "*B M 4"]
) -> Float[Array, "*B N M"]:
    """Intersection over union of every pair, 0 where nothing intersects (two empty boxes too)."""
    intersection, union = intersection_and_union(boxes, others)
    overlaps = intersection > 0
    return jnp.where(overlaps, intersection / jnp.where(overlaps, union, 1.0), 0.0)


def clip_boxes(boxes: Float[Array, "*B R 4"], sizes: Int[Array, "*B 2"]) -> Float[Array, "*B R 4"]:
    """Moves coordinates into ``[0, w]`` and ``[0, h]`` of each picture.

    Args:
        boxes: xyxy pixels of the canvas; NaN stays NaN.
        sizes: (height, width) of each picture's real pixels.
    """
    height, width = sizes[..., 0], sizes[..., 1]
    limit = jnp.stack([width, height, width, height], -1)[..., None, :].astype(boxes.dtype)
    return jnp.clip(boxes, 0.0, limit)


def scale_boxes(
    boxes: Float[Array, "*B R 4"], scales: Float[Array, "*B 2"]
) -> Float[Array, "*B R 4"]:
    """Multiplies by each picture's ``scales``, ordered (y, x) as in ``DetectionBatch``."""
    return boxes * jnp.concatenate([scales[..., ::-1], scales[..., ::-1]], -1)[..., None, :]


def valid_boxes(boxes: Float[Array, "*B R 4"], min_size: float = 0.0) -> Bool[Array, "*B R"]:
    """Which boxes are finite with both sides longer than ``min_size`` (strictly), in pixels."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return jnp.isfinite(boxes).all(-1) & (sides > min_size).all(-1)


def _rounded(product):
    """``product``, rounded before it enters a sum.

    The choice between two computed values (the second is taken for NaN only, and is NaN) keeps
    product and sum from becoming one instruction. ``optimization_barrier`` and ``reduce_precision``
    do not; with a constant as second value the sum may be moved into the choice.
    """
    return jnp.where(product == product, product, -product)
