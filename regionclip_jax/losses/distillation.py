"""Distillation: the student's distribution over concepts follows the teacher's (paper eq. 4)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.losses.concept_alignment import PseudoLabels, mean_over_groups


def distillation_loss(
    student_logits: Float[Array, "groups M C"], labels: PseudoLabels
) -> Float[Array, ""]:
    """KL(teacher || student) per kept region, averaged (spec: models_pretrain 3.9.1).

    The reference takes ``softmax(...).log()``, which becomes infinite where a probability
    underflows; log-softmax is the same number without that (spec 7.4). Terms of zero teacher
    probability are 0.
    """
    log_student = jax.nn.log_softmax(student_logits.astype(jnp.float32), axis=-1)
    teacher = labels.probabilities
    log_teacher = jnp.log(jnp.where(teacher > 0, teacher, 1.0))
    divergence = (teacher * (log_teacher - log_student)).sum(-1)
    return mean_over_groups(divergence, labels.keep)
