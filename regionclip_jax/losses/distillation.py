"""Distillation of the teacher's distribution over concepts into the student (paper eq. 4)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def distillation_losses(
    student_logits: Float[Array, "*regions C"], teacher_logits: Float[Array, "*regions C"]
) -> Float[Array, "*regions"]:
    """Return KL(teacher || student) of each region.

    Source: docs/reference/pretraining.md#distillation. The reference takes ``softmax(...).log()``,
    which is infinite if a probability underflows. Log-softmax gives the same number without this
    case. Terms of zero teacher probability are 0.
    """
    log_student, log_teacher = (
        jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        for logits in (student_logits, teacher_logits)
    )
    return (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(-1)
