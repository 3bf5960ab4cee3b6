"""Box regression of a fine-tuned detector: one set of deltas per region, for all classes.

Source: docs/reference/detection.md#classifier. The input is the tower's embedding of the region,
not the unit vector that is classified. Zero-shot inference does not change the boxes.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.ops.box_coder import BOX_HEAD_WEIGHTS, decode_deltas


class BoxHead(nn.Module):
    """Linear layer, ``bbox_pred`` of the reference. Its initial deltas are close to zero."""

    @nn.compact
    def __call__(self, embeddings: Float[Array, "*regions D"]) -> Float[Array, "*regions 4"]:
        """Return deltas in fp32, encoded with ``BOX_HEAD_WEIGHTS``."""
        deltas = nn.Dense(4, kernel_init=nn.initializers.normal(0.001), name="deltas")
        return deltas(embeddings.astype(jnp.float32))


def regress_boxes(
    variables: dict, embeddings: Float[Array, "*regions D"], boxes: Float[Array, "*regions 4"]
) -> Float[Array, "*regions 4"]:
    """Refine ``boxes`` by the deltas of their regions' embeddings; same frame, not clipped."""
    return decode_deltas(BoxHead().apply(variables, embeddings), boxes, BOX_HEAD_WEIGHTS)
