"""Concept contrastive: a region against the pseudo-labels of its group (paper eq. 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.losses.concept_alignment import PseudoLabels, mean_over_groups


def concept_contrastive_loss(
    student_logits: Float[Array, "groups M C"], labels: PseudoLabels
) -> Float[Array, ""]:
    """Minus the log of the probability on regions labelled alike (spec: models_pretrain 3.9.2).

    The reference builds the K x K matrix of kept regions against the concepts they were labelled
    with; a concept named by n regions stands in it n times. So the same number comes from the
    logits over all concepts, each shifted by log n and excluded where n = 0: no K x K matrix, no
    gather of embeddings.
    """
    num_concepts = student_logits.shape[-1]
    named = jax.nn.one_hot(labels.targets, num_concepts, dtype=jnp.float32)
    multiplicity = (named * labels.keep[..., None]).sum(-2, keepdims=True)
    # Finite, so that a group in which nothing is kept has a finite gradient too.
    log_multiplicity = jnp.where(multiplicity > 0, jnp.log(jnp.maximum(multiplicity, 1.0)), -1e9)
    logits = student_logits.astype(jnp.float32) + log_multiplicity
    chosen = jnp.take_along_axis(logits, labels.targets[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - chosen
    return mean_over_groups(loss, labels.keep)
