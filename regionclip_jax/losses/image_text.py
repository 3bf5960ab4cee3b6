"""Image-text contrastive losses over the global batch: the softmax of CLIP, the sigmoid of SigLIP.

Source: docs/reference/pretraining.md#image-text-loss, docs/reference/pretraining.md#sigmoid-losses.
Under ``jit`` with a sharded batch axis the arrays are the global batch. The gradient is then that
of the reference's gather with gradient (docs/reference/pretraining.md#gather), and no gather is
needed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from regionclip_jax.ops.normalization import unit_length
from regionclip_jax.structures import Number

# (images, texts, mask, temperature, bias) -> loss: the plain one below, or a form with less memory.
ImageTextLoss = Callable[..., Float[Array, ""]]


def image_text_loss(
    images: Float[Array, "B D"],
    texts: Float[Array, "B D"],
    mask: Bool[Array, " B"],
    temperature: Number,
    bias: Number | None = None,
) -> Float[Array, ""]:
    """Return the loss of matching every image to its text within the batch.

    Without a bias it is the symmetric cross-entropy of softmaxes. With a bias every pair of an
    image and a text is a decision of its own: the binary cross-entropy of the pair's sigmoid.

    Memory: the ``B x B`` matrix of logits; ``image_text_blockwise`` has the same loss without it.

    Args:
        images, texts: embeddings of any length; row i of both is a pair.
        mask: False rows are neither queries nor negatives.
        temperature: divisor of the cosines.
        bias: summand of the logits of the sigmoid; None selects the softmax.

    Returns:
        Softmax: mean over real rows of both directions, halved. Sigmoid: sum over pairs of real
        rows, divided by the number of real rows. 0 if no row is real.
    """
    logits = unit_length(images) @ unit_length(texts).T / temperature
    if bias is not None:
        return _sigmoid_loss(logits + bias, mask)
    logits = jnp.where(mask[:, None] & mask[None, :], logits, -1e9)
    matching = jnp.diagonal(logits)
    to_text = jax.nn.logsumexp(logits, axis=1) - matching
    to_image = jax.nn.logsumexp(logits, axis=0) - matching
    count = jnp.maximum(mask.sum(), 1)
    return jnp.where(mask, to_text + to_image, 0.0).sum() / (2 * count)


def _sigmoid_loss(logits: Float[Array, "B B"], mask: Bool[Array, " B"]) -> Float[Array, ""]:
    matches = jnp.eye(len(logits), dtype=bool)
    losses = -jax.nn.log_sigmoid(jnp.where(matches, logits, -logits))
    total = jnp.where(mask[:, None] & mask[None, :], losses, 0.0).sum()
    return total / jnp.maximum(mask.sum(), 1)
