"""Division by the L2 norm with a finite gradient at zero."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def unit_length(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Divide rows by their L2 norm, in fp32.

    The reference divides without an epsilon (docs/reference/pretraining.md#unit-length). The
    epsilon here is far below any norm of a model. It keeps rows of zeros and their gradients
    finite.
    """
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
