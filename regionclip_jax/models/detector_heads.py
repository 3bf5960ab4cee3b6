"""Heads of a fine-tuned detector: box regression and masks, the same for all classes.

Source: docs/reference/detection.md#classifier, docs/reference/detection.md#masks.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.models.convolution import TransposedConv
from regionclip_jax.ops.box_coder import BOX_HEAD_WEIGHTS, decode_deltas
from regionclip_jax.ops.convolution import relu


class BoxHead(nn.Module):
    """Linear layer, ``bbox_pred`` of the reference. Its initial deltas are close to zero.

    The input is the tower's embedding of the region, not the unit vector that is classified.
    Zero-shot inference does not change the boxes.
    """

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


class MaskHead(nn.Module):
    """Transposed 2x2 convolution of stride 2, a ReLU, and a logit for every cell.

    The input is the map of a region before pooling (``crop_features`` of a tower), not its
    embedding.
    """

    features: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Float[Array, "N h w channels"]) -> Float[Array, "N 2*h 2*w"]:
        """Return logits in fp32."""
        x = relu(TransposedConv(self.features, self.dtype, name="deconv")(maps))
        predictor = nn.Dense(
            1, kernel_init=nn.initializers.normal(0.001), dtype=self.dtype, name="predictor"
        )
        return predictor(x)[..., 0].astype(jnp.float32)
