"""Box regression of a fine-tuned detector: one set of deltas per region, whatever its class.

Source: docs/reference/detection.md#classifier. It regresses from the region's embedding as the
tower gives it, not from the unit vector that is classified. Zero-shot inference leaves the boxes as
they are.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.ops.box_coder import BOX_HEAD_WEIGHTS, decode_deltas


class BoxHead(nn.Module):
    """A linear layer, ``bbox_pred`` of the reference. It starts near "stay where you are"."""

    @nn.compact
    def __call__(self, embeddings: Float[Array, "*regions D"]) -> Float[Array, "*regions 4"]:
        """Deltas in fp32, encoded with ``BOX_HEAD_WEIGHTS``."""
        deltas = nn.Dense(4, kernel_init=nn.initializers.normal(0.001), name="deltas")
        return deltas(embeddings.astype(jnp.float32))


def regress_boxes(
    variables: dict, embeddings: Float[Array, "*regions D"], boxes: Float[Array, "*regions 4"]
) -> Float[Array, "*regions 4"]:
    """``boxes`` moved and resized as their regions' embeddings say; same frame, not clipped."""
    return decode_deltas(BoxHead().apply(variables, embeddings), boxes, BOX_HEAD_WEIGHTS)
