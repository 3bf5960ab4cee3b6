"""Pseudo-labels of regions from the concept pool, and groups of images.

Source: paper sections 3.2 and 3.3; docs/reference/pretraining.md#pseudo-labels. The reference
computes both region losses, their means and the rule "if no region passes the threshold keep all"
on each GPU alone. Its negatives therefore come from 3 images. Here the group of images is an
argument, and the number of devices never changes the objective.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class PseudoLabels:
    """The teacher's labels of every region. The losses ignore regions with ``keep`` False.

    The distribution over the C concepts is not stored; it is recomputed from the embeddings.
    """

    embeddings: Float[Array, "B R Dt"]
    targets: Int[Array, "B R"]
    confidence: Float[Array, "B R"]
    keep: Bool[Array, "B R"]


def group_regions(x: Array, images_per_group: int | None) -> Array:
    """Reshape ``[B, R, ...]`` to ``[groups, images_per_group * R, ...]``; None makes one group.

    Raises:
        ValueError: the batch does not divide into groups.
    """
    num_images = x.shape[0]
    size = images_per_group or num_images
    if num_images % size:
        raise ValueError(
            f"images_per_group {size} does not divide the batch of {num_images} images; "
            "choose a divisor, or None for the whole batch"
        )
    return x.reshape(num_images // size, size * x.shape[1], *x.shape[2:])


def likeliest_concepts(
    logits: Float[Array, "*regions C"],
) -> tuple[Int[Array, "*regions"], Float[Array, "*regions"]]:
    """Return the likeliest concept of each region, and its probability."""
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return probabilities.argmax(-1), probabilities.max(-1)


def confident_regions(
    confidence: Float[Array, "groups M"], mask: Bool[Array, "groups M"], threshold: float
) -> Bool[Array, "groups M"]:
    """Return the real regions whose likeliest concept has a probability above a threshold.

    The comparison is strict. A group in which no region passes keeps all its real regions
    (docs/reference/pretraining.md#pseudo-labels).
    """
    passed = mask & (confidence > threshold)
    return jnp.where(passed.any(-1, keepdims=True), passed, mask)


def mean_over_groups(
    values: Float[Array, "groups M"], keep: Bool[Array, "groups M"]
) -> Float[Array, ""]:
    """Return the mean over kept regions of each group, then over the groups that keep any."""
    counts = keep.sum(-1)
    means = jnp.where(keep, values, 0.0).sum(-1) / jnp.maximum(counts, 1)
    return means.sum() / jnp.maximum((counts > 0).sum(), 1)
