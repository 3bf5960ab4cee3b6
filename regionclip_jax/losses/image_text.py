"""Image-text contrastive loss over the global batch.

Source: docs/reference/pretraining.md#image-text-loss. Under ``jit`` with a sharded batch axis these
arrays are the global batch, so the reference's gather with gradient
(docs/reference/pretraining.md#gather) has no counterpart here: this is the loss whose gradient that
gather computes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from regionclip_jax.ops.unit_length import unit_length

# (images, texts, mask, temperature) -> loss: the plain one below, or a form of it that holds less.
ImageTextLoss = Callable[..., Float[Array, ""]]


def image_text_loss(
    images: Float[Array, "B D"],
    texts: Float[Array, "B D"],
    mask: Bool[Array, " B"],
    temperature: float | Float[Array, ""],
) -> Float[Array, ""]:
    """Symmetric cross-entropy of matching every picture to its text among the texts of the batch.

    Holds the ``B x B`` matrix of logits; ``image_text_blockwise`` has the same loss without it.

    Args:
        images, texts: embeddings of any length; row i of both belong together.
        mask: False rows take no part, neither as queries nor as negatives.
        temperature: cosines are divided by it.

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
