"""Concept contrastive: a region against the pseudo-labels of its group (paper eq. 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def count_targets(
    targets: Int[Array, "groups M"], keep: Bool[Array, "groups M"], num_concepts: int
) -> Float[Array, "groups C"]:
    """How many kept regions of each group are labelled with each concept."""
    group = jnp.arange(targets.shape[0])[:, None]
    counts = jnp.zeros((targets.shape[0], num_concepts))
    return counts.at[group, targets].add(keep.astype(jnp.float32))


def concept_contrastive_losses(
    student_logits: Float[Array, "*regions C"],
    targets: Int[Array, "*regions"],
    counts: Float[Array, "*#regions C"],
) -> Float[Array, "*regions"]:
    """Return minus the log of the probability on regions labelled alike.

    Source: docs/reference/pretraining.md#contrastive-loss. The reference builds the K x K matrix of
    kept regions against the concepts they were labelled with; a concept named by n regions stands
    in it n times. So the same number comes from the logits over all concepts, each shifted by log n
    and excluded where n = 0: no K x K matrix, no gather of embeddings.

    Args:
        student_logits: of each region over all concepts.
        targets: the concept each region was labelled with.
        counts: ``count_targets`` of each region's group.
    """
    # Finite, so that a group in which nothing is kept has a finite gradient too.
    log_counts = jnp.where(counts > 0, jnp.log(jnp.maximum(counts, 1.0)), -1e9)
    logits = student_logits.astype(jnp.float32) + log_counts
    # A comparison where indexing would do: it also works on a part of the concepts, as a device
    # has where the pool is split over devices.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    chosen = jnp.where(is_target, logits, 0.0).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen
