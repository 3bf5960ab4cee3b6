"""Batch normalisation, frozen (the reference) or live (training from scratch).

Spec: models_pretrain 1.4. The reference runs every norm of the CLIP trunk frozen: an affine map
with eps 1e-5 made of four stored vectors. ``train_clip`` needs live statistics to learn from
nothing; any later job uses the same variables with ``frozen=True``.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5
MOMENTUM = 0.9


class BatchNorm(nn.Module):
    """Per-channel normalisation over the last axis.

    Parameters ``scale`` and ``bias``; collection ``batch_stats`` holds ``mean`` and ``var``. Live
    mode normalises by the batch it sees (the global batch under ``jit`` with a sharded batch axis)
    and updates the statistics when ``batch_stats`` is mutable.
    """

    frozen: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... channels"]) -> Float[Array, "... channels"]:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        if self.frozen:
            batch_mean, batch_var = mean.value, var.value
        else:
            axes = tuple(range(x.ndim - 1))
            x32 = x.astype(jnp.float32)
            batch_mean = x32.mean(axes)
            batch_var = jnp.maximum(jnp.square(x32).mean(axes) - jnp.square(batch_mean), 0.0)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * batch_mean
                var.value = MOMENTUM * var.value + (1 - MOMENTUM) * batch_var
        # Folded in fp32 into one multiply-add, which XLA fuses with the convolution's output.
        multiplier = scale * jax.lax.rsqrt(batch_var + EPSILON)
        offset = bias - batch_mean * multiplier
        return x * multiplier.astype(x.dtype) + offset.astype(x.dtype)
