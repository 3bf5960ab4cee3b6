"""Losses of a region proposal network.

Source: docs/reference/localizers.md#training. Both are sums over the sampled anchors divided by the
requested number of anchors (256 per image), as in detectron2: an image with fewer weighs less.
There are no golden arrays; the tests compare with NumPy.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from regionclip_jax.ops.box_coder import RPN_WEIGHTS, encode_deltas
from regionclip_jax.ops.matching import IGNORED, POSITIVE


def objectness_loss(
    logits: Float[Array, "B anchors"], labels: Int[Array, "B anchors"], samples_per_image: int
) -> Float[Array, ""]:
    """Return the binary cross entropy of the sampled anchors; ``labels`` from ``ops.matching``."""
    entropy = optax.sigmoid_binary_cross_entropy(
        logits.astype(jnp.float32), (labels == POSITIVE).astype(jnp.float32)
    )
    return jnp.where(labels != IGNORED, entropy, 0.0).sum() / (samples_per_image * len(labels))


def anchor_regression_loss(
    deltas: Float[Array, "B anchors 4"],
    anchors: Float[Array, "anchors 4"],
    targets: Float[Array, "B anchors 4"],
    labels: Int[Array, "B anchors"],
    samples_per_image: int,
) -> Float[Array, ""]:
    """Return the absolute errors of the sampled positives' deltas, summed and normalised.

    Args:
        deltas: predicted, in units of ``RPN_WEIGHTS``.
        anchors: the same for all images, canvas pixels.
        targets: each anchor's ground-truth box, same frame; any box for an anchor that is not
            positive.
    """
    positive = (labels == POSITIVE)[..., None]
    unit = jnp.array([0.0, 0.0, 1.0, 1.0])
    wanted = encode_deltas(
        jnp.where(positive, anchors, unit), jnp.where(positive, targets, unit), RPN_WEIGHTS
    )
    errors = jnp.abs(deltas.astype(jnp.float32) - wanted)
    return jnp.where(positive, errors, 0.0).sum() / (samples_per_image * len(labels))
