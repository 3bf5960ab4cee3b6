"""Losses of a detector's heads: classification, box regression and masks.

Source: docs/reference/training_detectors.md#losses. All sums are over the regions of the global
batch; the reference's are over those of one GPU. Its recipe has one GPU with 16 images, for which
both are the same.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.ops.box_coder import BOX_HEAD_WEIGHTS, encode_deltas

# Below this ``1 - p`` a region has no gradient; the power's slope would be infinite at 0.
_SMALLEST = 1e-12


def classification_loss(
    logits: Float[Array, "*regions _"],
    classes: Int[Array, "*regions"],
    mask: Bool[Array, "*regions"],
    *,
    background_weight: float,
    focal_gamma: float | None,
) -> Float[Array, ""]:
    """Return the cross entropy over classes and background, in one of the reference's two forms.

    With ``focal_gamma`` g (COCO: 0.5): the sum of ``w (1 - p)^g CE`` divided by the *number* of
    regions, where p is the probability of the right class. Without it (LVIS): ``sum w CE / sum w``,
    divided by the sum of the *weights*. Both normalisations are the reference's.

    The slope of ``(1 - p)^0.5`` is infinite at p = 1, where the reference's gradient turns NaN
    (cosine margins above 0.17 at temperature 0.01). Here ``1 - p`` is ``-expm1(-CE)``, exact for p
    near 1. Regions with ``1 - p`` below 1e-12 have no gradient: the limit of ``CE (1 - p)^g`` and
    of its slope is 0 for g > 0.

    Args:
        logits: cosines over the temperature; C classes, then the background.
        classes: C is the background.
        mask: regions that exist.
        background_weight: w of background regions; all others have 1.
        focal_gamma: None for the form without focal scaling.

    Returns:
        Scalar; 0 for a batch without regions.
    """
    logits = logits.astype(jnp.float32)
    background = logits.shape[-1] - 1
    matched = jnp.take_along_axis(logits, classes[..., None], -1)[..., 0]
    entropy = jax.nn.logsumexp(logits, axis=-1) - matched
    weights = jnp.where(classes == background, background_weight, 1.0) * mask
    if focal_gamma is None:
        total = weights.sum()
        return (weights * entropy).sum() / jnp.where(total > 0, total, 1.0)
    wrongness = -jnp.expm1(-entropy)
    large = wrongness > _SMALLEST
    scale = jnp.where(large, jnp.where(large, wrongness, 1.0) ** focal_gamma, 0.0)
    return (weights * scale * entropy).sum() / jnp.maximum(mask.sum(), 1)


def box_regression_loss(
    deltas: Float[Array, "*regions 4"],
    boxes: Float[Array, "*regions 4"],
    targets: Float[Array, "*regions 4"],
    is_positive: Bool[Array, "*regions"],
    mask: Bool[Array, "*regions"],
) -> Float[Array, ""]:
    """Return the positives' absolute errors of deltas, summed, over the number of *all* regions.

    Args:
        deltas: predicted, the same for every class, in units of ``BOX_HEAD_WEIGHTS``.
        boxes: the regions, canvas pixels.
        targets: the ground-truth box of each positive, same frame; any box for other regions.
        is_positive: regions matched to an object.
        mask: regions that exist.
    """
    wanted = is_positive & mask
    unit = jnp.array([0.0, 0.0, 1.0, 1.0])
    safe = jnp.where(wanted[..., None], boxes, unit), jnp.where(wanted[..., None], targets, unit)
    errors = jnp.abs(deltas.astype(jnp.float32) - encode_deltas(*safe, BOX_HEAD_WEIGHTS)).sum(-1)
    return jnp.where(wanted, errors, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def mask_loss(
    logits: Float[Array, "N M M"], targets: Float[Array, "N M M"], mask: Bool[Array, " N"]
) -> Float[Array, ""]:
    """Return the mean binary cross entropy of all cells of the rows in ``mask``; 0 without rows.

    Tests compare it with NumPy; there is no golden array.
    """
    entropy = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).mean((1, 2))
    return jnp.where(mask, entropy, 0.0).sum() / jnp.maximum(mask.sum(), 1)
