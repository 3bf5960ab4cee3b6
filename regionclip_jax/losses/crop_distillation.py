"""Distillation of a teacher's embeddings of crops into a student's embeddings of boxes."""

from jaxtyping import Array, Bool, Float

from regionclip_jax.ops.normalization import unit_length


def crop_distillation_loss(
    student: Float[Array, "B R D"], teacher: Float[Array, "B R D"], mask: Bool[Array, "B R"]
) -> Float[Array, ""]:
    """Return one minus the mean cosine of the boxes in ``mask``; 0 if there is none.

    Source: docs/reference/distillation.md#loss. The mean is over all boxes of the global batch.
    """
    losses = 1.0 - (unit_length(student) * unit_length(teacher)).sum(-1)
    number = mask.sum()
    return (losses * mask).sum() / number.clip(1)
