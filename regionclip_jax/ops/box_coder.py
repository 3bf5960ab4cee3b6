"""Box deltas: the offset of a box from a reference box, in units of the latter's size.

Source: docs/reference/localizers.md#box-deltas. ``(dx, dy)`` shift the centre by fractions of the
reference's width and height, ``(dw, dh)`` are logarithms of the ratios of the sides. Each is
multiplied by a weight when encoded: (1, 1, 1, 1) in region proposal networks, (10, 10, 5, 5) in box
heads.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_HEAD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Bounds a decoded side to 1000 px for a reference of 16 px. There is no lower bound.
MAX_LOG_RATIO = math.log(1000.0 / 16)


def encode_deltas(
    boxes: Float[Array, "*#B 4"],
    targets: Float[Array, "*#B 4"],
    weights: tuple[float, float, float, float] = RPN_WEIGHTS,
) -> Float[Array, "*B 4"]:
    """Return the deltas that turn ``boxes`` (proposals, anchors) into ``targets``.

    Args:
        boxes: xyxy with positive sides; sides of 0 give infinite or NaN deltas, so mask them.
        targets: xyxy in the same frame, with positive sides.
        weights: of dx, dy, dw, dh.
    """
    centers, sides = _centers_and_sides(boxes)
    target_centers, target_sides = _centers_and_sides(targets)
    shifts = (target_centers - centers) / sides
    log_ratios = jnp.log(target_sides / sides)
    return jnp.concatenate([shifts, log_ratios], -1) * jnp.asarray(weights, boxes.dtype)


def decode_deltas(
    deltas: Float[Array, "*#B 4"],
    boxes: Float[Array, "*#B 4"],
    weights: tuple[float, float, float, float] = RPN_WEIGHTS,
) -> Float[Array, "*B 4"]:
    """Move and resize ``boxes`` by ``deltas``: the inverse of ``encode_deltas`` up to the clamp.

    Args:
        deltas: dx, dy, dw, dh; deltas per class need an axis of classes.
        boxes: xyxy reference boxes.
        weights: the weights of ``encode_deltas``.
    """
    centers, sides = _centers_and_sides(boxes)
    deltas = deltas / jnp.asarray(weights, deltas.dtype)
    centers = deltas[..., :2] * sides + centers
    sides = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_RATIO)) * sides
    return jnp.concatenate([centers - 0.5 * sides, centers + 0.5 * sides], -1)


def _centers_and_sides(boxes):
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides
