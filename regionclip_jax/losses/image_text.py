"""Image-text contrastive loss over the global batch.

Source: docs/reference/pretraining.md#image-text-loss. Under ``jit`` with a sharded batch axis the
arrays are the global batch. The gradient is then that of the reference's gather with gradient
(docs/reference/pretraining.md#gather), and no gather is needed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from regionclip_jax.ops.normalization import unit_length

# (images, texts, mask, temperature) -> loss: the plain one below, or a form with less memory.
ImageTextLoss = Callable[..., Float[Array, ""]]


def image_text_loss(
    images: Float[Array, "B D"],
    texts: Float[Array, "B D"],
    mask: Bool[Array, " B"],
    temperature: float | Float[Array, ""],
) -> Float[Array, ""]:
    """Return the symmetric cross-entropy of matching every image to its text within the batch.

    Memory: the ``B x B`` matrix of logits; ``image_text_blockwise`` has the same loss without it.

    Args:
        images, texts: embeddings of any length; row i of both is a pair.
        mask: False rows are neither queries nor negatives.
        temperature: divisor of the cosines.

    Returns:
        Mean over real rows of both directions, halved; 0 if no row is real.
    """
    logits = unit_length(images) @ unit_length(texts).T / temperature
    logits = jnp.where(mask[:, None] & mask[None, :], logits, -1e9)
    matching = jnp.diagonal(logits)
    to_text = jax.nn.logsumexp(logits, axis=1) - matching
    to_image = jax.nn.logsumexp(logits, axis=0) - matching
    count = jnp.maximum(mask.sum(), 1)
    return jnp.where(mask, to_text + to_image, 0.0).sum() / (2 * count)
