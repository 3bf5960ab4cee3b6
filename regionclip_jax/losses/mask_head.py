"""Loss of a detector's masks.

Source: docs/reference/training_detectors.md#losses. Tests compare it with NumPy; there is no golden
array.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float


def mask_loss(
    logits: Float[Array, "N M M"], targets: Float[Array, "N M M"], mask: Bool[Array, " N"]
) -> Float[Array, ""]:
    """Return the mean binary cross entropy of all cells of the rows in ``mask``; 0 without rows."""
    entropy = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).mean((1, 2))
    return jnp.where(mask, entropy, 0.0).sum() / jnp.maximum(mask.sum(), 1)
