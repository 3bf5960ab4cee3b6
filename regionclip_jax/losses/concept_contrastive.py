"""Concept contrastive loss: a region against the pseudo-labels of its group (paper eq. 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def count_targets(
    targets: Int[Array, "groups M"], keep: Bool[Array, "groups M"], num_concepts: int
) -> Float[Array, "groups C"]:
    """Count the kept regions of each group with each concept as label."""
    group = jnp.arange(targets.shape[0])[:, None]
    counts = jnp.zeros((targets.shape[0], num_concepts))
    return counts.at[group, targets].add(keep.astype(jnp.float32))


def concept_contrastive_losses(
    student_logits: Float[Array, "*regions C"],
    targets: Int[Array, "*regions"],
    counts: Float[Array, "*#regions C"],
) -> Float[Array, "*regions"]:
    """Return minus the log of the probability of the regions with the same label.

    Source: docs/reference/pretraining.md#contrastive-loss. The reference builds the K x K matrix of
    kept regions against their labels; a label of n regions has n columns. The logits over all
    concepts give the same number, each shifted by log n and excluded if n = 0. So there is no K x K
    matrix and no gather of embeddings.

    Args:
        student_logits: of each region over all concepts.
        targets: the label of each region.
        counts: ``count_targets`` of each region's group.
    """
    # Finite, so that a group without kept regions has a finite gradient too.
    log_counts = jnp.where(counts > 0, jnp.log(jnp.maximum(counts, 1.0)), -1e9)
    logits = student_logits.astype(jnp.float32) + log_counts
    # Unlike indexing, a comparison also works on a device's part of a sharded pool.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    chosen = jnp.where(is_target, logits, 0.0).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen
