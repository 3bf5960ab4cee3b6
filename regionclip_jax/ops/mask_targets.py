"""Targets of a mask head: the object's raster, resampled to a region's cells.

The reference draws the polygon of an object again in each proposal
(docs/reference/training_detectors.md#losses). Here an object has one raster of its own box, in
P x P cells. It is resampled linearly and cut at one half, as in detectron2 for bit masks. The
outlines differ by less than a cell of the finer raster; there are no golden arrays of either.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def mask_targets(
    object_masks: UInt8[Array, "N P P"],
    boxes: Float[Array, "N 4"],
    regions: Float[Array, "N 4"],
    size: int,
) -> Float[Array, "N M M"]:
    """Return 1 in the cells of each region that have their middle on the object.

    Args:
        object_masks: raster of each object over its own box.
        boxes: the objects' boxes, xyxy.
        regions: one region per object, xyxy in the same frame.
        size: M, cells of a region's side.
    """
    num_cells = object_masks.shape[-1]
    middles = (jnp.arange(size) + 0.5) / size

    def weights(axis: int) -> Float[Array, "N M P"]:
        low, high = regions[:, axis, None], regions[:, axis + 2, None]
        begin = boxes[:, axis, None]
        side = jnp.maximum(boxes[:, axis + 2, None] - begin, 1e-6)
        # In cells of the raster.
        position = (low + middles * (high - low) - begin) / side * num_cells - 0.5
        return jnp.maximum(1 - jnp.abs(position[..., None] - jnp.arange(num_cells)), 0.0)

    values = jnp.einsum(
        "nyp,npq,nxq->nyx", weights(1), object_masks.astype(jnp.float32), weights(0)
    )
    return (values >= 0.5).astype(jnp.float32)
