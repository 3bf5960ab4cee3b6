"""Boxes: area, intersection over union, clipping, scaling, validity.

Boxes are float32 ``(x1, y1, x2, y2)`` of continuous coordinates: a width is ``x2 - x1`` without
"+1" and the right edge of an image of ``w`` pixels is ``w``
(docs/reference/detection.md#comparisons).

Boxes on a grid often have an IoU at the threshold, where single bits decide. So areas and unions
are rounded to float32 after every operation, as in the reference. XLA on CPUs fuses a product and a
sum into one instruction that rounds once; ``_rounded`` prevents this.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.structures import Number


def box_area(boxes: Float[Array, "*B R 4"]) -> Float[Array, "*B R"]:
    """Return width times height; negative for boxes inverted along one axis."""
    return _rounded((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))


def intersection_and_union(
    boxes: Float[Array, "*B N 4"], others: Float[Array, "*B M 4"]
) -> tuple[Float[Array, "*B N M"], Float[Array, "*B N M"]]:
    """Return the areas of the intersection and the union of every pair.

    The intersection is 0 if the boxes only touch, or if one is empty or inverted. The union is then
    the sum of their areas, which may be 0 or negative. NaN coordinates give a NaN union.
    """
    low = jnp.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    high = jnp.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    sides = jnp.maximum(high - low, 0.0)
    intersection = _rounded(sides[..., 0] * sides[..., 1])
    union = box_area(boxes)[..., :, None] + box_area(others)[..., None, :] - intersection
    return intersection, union


def exact_threshold(threshold: Number) -> Number:
    """Return an IoU threshold as an argument of a program: the largest float32 up to it.

    An array is returned as it is, because it has passed this function. A float32 IoU exceeds the
    returned number exactly if it exceeds ``threshold``.

    Raises:
        ValueError: the threshold is not between 0 and 1.
    """
    if not isinstance(threshold, float | int):
        return threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"IoU threshold {threshold}: expected a number from 0 to 1")
    low = np.float32(threshold)
    return np.nextafter(low, np.float32(-1)) if float(low) > threshold else low


def iou_exceeds(
    intersection: Float[Array, "*pairs"], union: Float[Array, "*pairs"], threshold: Number
) -> Bool[Array, "*pairs"]:
    """Return ``intersection / union > threshold``, with the quotient rounded to float32.

    No division is used: a GPU's quotient may be off by a bit, so that a box's IoU with itself is
    not 1 (openxla/xla#37181). Let t be ``exact_threshold(threshold)``, and m the middle
    between t and the next float32. The quotient rounds to more than t exactly if it exceeds m, that
    is if ``intersection > m * union``. (It cannot equal m, which has one bit too many.) Both
    factors are cut into halves of at most 12 bits. All partial products are then exact, and so are
    their differences where the decision is close.

    Args:
        intersection, union: as from ``intersection_and_union``.
        threshold: between 0 and 1; an array comes from ``exact_threshold``.

    Returns:
        False where nothing intersects or a number is NaN.

    Raises:
        ValueError: the threshold is not between 0 and 1.
    """
    middle_high, middle_low = _middle(jnp.asarray(exact_threshold(threshold), jnp.float32))
    union_high = jax.lax.reduce_precision(union, exponent_bits=8, mantissa_bits=11)
    union_low = union - union_high
    excess = intersection - middle_high * union_high - middle_high * union_low
    excess = excess - middle_low * union_high - middle_low * union_low
    return (intersection > 0) & (excess > 0)


def _middle(low: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return two numbers of at most 12 bits, whose sum lies between ``low`` and the next float32.

    Both are 0 if ``low`` is too small to be halved; any intersection exceeds it.
    """
    bits = jax.lax.bitcast_convert_type(low, jnp.int32)

    def number(bits):
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    # The nearest number of 12 bits to the middle: the middle lies above a tie of ``low``.
    high = number((bits + (1 << 11)) & -(1 << 12))
    rest = (low - high) + (number(bits + 1) - low) / 2
    return tuple(jnp.where(low < 1e-20, 0.0, part) for part in (high, rest))


def pairwise_iou(
    boxes: Float[Array, "*B N 4"], others: Float[Array, "*B M 4"]
) -> Float[Array, "*B N M"]:
    """Return the IoU of every pair; 0 where nothing intersects (two empty boxes too)."""
    intersection, union = intersection_and_union(boxes, others)
    overlaps = intersection > 0
    return jnp.where(overlaps, intersection / jnp.where(overlaps, union, 1.0), 0.0)


def clip_boxes(boxes: Float[Array, "*B R 4"], sizes: Int[Array, "*B 2"]) -> Float[Array, "*B R 4"]:
    """Clip coordinates to ``[0, w]`` and ``[0, h]`` of each image.

    Args:
        boxes: xyxy pixels of the canvas; NaN stays NaN.
        sizes: (height, width) of each image's real pixels.
    """
    height, width = sizes[..., 0], sizes[..., 1]
    limit = jnp.stack([width, height, width, height], -1)[..., None, :].astype(boxes.dtype)
    return jnp.clip(boxes, 0.0, limit)


def enlarge_boxes(boxes: Float[Array, "*B R 4"], factor: float) -> Float[Array, "*B R 4"]:
    """Multiply widths and heights by ``factor``; centres stay."""
    low, high = boxes[..., :2], boxes[..., 2:]
    added = (factor - 1) / 2 * (high - low)
    return jnp.concatenate([low - added, high + added], -1)


def scale_boxes(
    boxes: Float[Array, "*B R 4"], scales: Float[Array, "*B 2"]
) -> Float[Array, "*B R 4"]:
    """Multiply by each image's ``scales``, ordered (y, x) as in ``DetectionBatch``."""
    return boxes * jnp.concatenate([scales[..., ::-1], scales[..., ::-1]], -1)[..., None, :]


def valid_boxes(boxes: Float[Array, "*B R 4"]) -> Bool[Array, "*B R"]:
    """Return True for finite boxes with both sides longer than 0."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return jnp.isfinite(boxes).all(-1) & (sides > 0.0).all(-1)


def _rounded(product):
    """Return ``product``, rounded before it enters a sum.

    The choice between two computed values keeps XLA from fusing product and sum. (The second is
    chosen for NaN only, and is NaN.) ``optimization_barrier`` and ``reduce_precision`` do not. With
    a constant as second value XLA may move the sum into the choice.
    """
    return jnp.where(product == product, product, -product)
