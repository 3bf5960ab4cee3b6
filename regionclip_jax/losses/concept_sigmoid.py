"""Sigmoid loss of regions and concepts: every pair is a decision of its own.

Source: docs/reference/pretraining.md#sigmoid-losses; the loss of SigLIP (arXiv:2303.15343) with the
pseudo-labels of ``concept_alignment``.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


def draw_concepts(
    key: PRNGKeyArray, counts: Float[Array, "groups C"], number: int | None
) -> Bool[Array, "groups C"]:
    """Choose the concepts with which the regions of each group are compared.

    They are all labels of the group, and others drawn at random. Every other concept has the same
    probability, with which ``number`` are chosen on average. So a device with a part of the pool
    needs only the number of labels in the rest.

    Args:
        counts: ``concept_contrastive.count_targets`` of the groups.
        number: on average, if there are fewer labels; None chooses the whole pool.
    """
    if number is None:
        return jnp.ones(counts.shape, bool)
    is_label = counts > 0
    num_labels = is_label.sum(-1, keepdims=True)
    num_others = counts.shape[-1] - num_labels
    share = (number - num_labels) / jnp.maximum(num_others, 1)
    return is_label | (jax.random.uniform(key, counts.shape) < share)


def concept_sigmoid_losses(
    logits: Float[Array, "*regions C"],
    targets: Int[Array, "*regions"],
    concepts: Bool[Array, "*#regions C"],
) -> Float[Array, "*regions"]:
    """Return the sum of each region's binary cross-entropies: 1 for its label, else 0.

    Args:
        logits: of each region over all concepts, with the bias.
        targets: the label of each region.
        concepts: ``draw_concepts`` of each region's group; the others have no effect.
    """
    logits = logits.astype(jnp.float32)
    # Unlike indexing, a comparison also works on a device's part of a sharded pool.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    losses = -jax.nn.log_sigmoid(jnp.where(is_target, logits, -logits))
    return jnp.where(concepts, losses, 0.0).sum(-1)
