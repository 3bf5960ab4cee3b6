"""RoIAlign from the levels of a feature pyramid: each box from the level of its size.

Source: docs/reference/training_detectors.md#f-vit. The rule is that of feature pyramid networks, as
mmdetection's ``SingleRoIExtractor`` states it: a box of side s takes level ``floor(log2(s / 56))``,
from the finest to the coarsest level.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from regionclip_jax.ops.roi_align import roi_align

# Boxes with a side, in canvas pixels, below twice this one take the finest level.
FINEST_SIDE = 56


def level_of_boxes(boxes: Float[Array, "*rows 4"], num_levels: int) -> Int[Array, "*rows"]:
    """Return the level of each box, 0 for the finest. The side is the root of the box's area."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    side = jnp.sqrt(sides.prod(-1))
    level = jnp.floor(jnp.log2(side / FINEST_SIDE + 1e-6))
    return jnp.clip(level, 0, num_levels - 1).astype(jnp.int32)


def roi_align_levels(
    levels: Sequence[Float[Array, "B _ _ channels"]],
    boxes: Float[Array, "B R 4"],
    output_size: int,
    strides: Sequence[float | int],
    *,
    extents: Sequence[Int[Array, "B 2"]],
    implementation: str = "auto",
) -> Float[Array, "B R P P channels"]:
    """Crop each box from its level.

    All boxes pass every level, so shapes are static. A box is empty on the other levels, where its
    crop is therefore zero.

    Args:
        levels: maps, the finest first.
        boxes: xyxy in pixels of the canvas.
        output_size: P.
        strides: canvas pixels per cell of each level.
        extents: (height, width) in cells of each image's part of each level.
        implementation: as in ``ops.roi_align``.
    """
    chosen = level_of_boxes(boxes, len(levels))
    return sum(
        roi_align(
            features,
            jnp.where((chosen == number)[..., None], boxes, 0.0),
            output_size,
            1 / stride,
            extents=cells,
            implementation=implementation,
        )
        for number, (features, stride, cells) in enumerate(
            zip(levels, strides, extents, strict=True)
        )
    )
