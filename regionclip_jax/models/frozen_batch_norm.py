"""Batch normalisation, frozen (the reference) or live (training from scratch).

Source: docs/reference/towers.md#frozen-norms. The reference runs every norm of the CLIP trunk
frozen: an affine map with eps 1e-5 from four stored vectors. ``train_clip`` needs live statistics
to train from scratch; any later job uses the same variables with ``frozen=True``.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.models.convolution import Cells, Conv

EPSILON = 1e-5
MOMENTUM = 0.9


class BatchNorm(nn.Module):
    """Per-channel normalisation over the last axis.

    Parameters ``scale`` and ``bias``; collection ``batch_stats`` holds ``mean`` and ``var``. Live
    mode normalises by the batch it sees (the global batch under ``jit`` with a sharded batch axis)
    and updates the statistics when ``batch_stats`` is mutable.
    """

    features: int
    frozen: bool = True

    def setup(self):
        channels = (self.features,)
        self.scale = self.param("scale", nn.initializers.ones, channels)
        self.bias = self.param("bias", nn.initializers.zeros, channels)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        self.var = self.variable("batch_stats", "var", jnp.ones, channels)

    def __call__(self, x: Float[Array, "... features"]) -> Float[Array, "... features"]:
        if self.frozen:
            multiplier, offset = self.affine()
        else:
            multiplier, offset = self._folded(*self._of_batch(x))
        return x * multiplier.astype(x.dtype) + offset.astype(x.dtype)

    def affine(self) -> tuple[Float[Array, " features"], Float[Array, " features"]]:
        """Return the multiplier and the offset of the frozen norm, in fp32."""
        return self._folded(self.mean.value, self.var.value)

    def _folded(self, mean, var):
        multiplier = self.scale * jax.lax.rsqrt(var + EPSILON)
        return multiplier, self.bias - mean * multiplier

    def _of_batch(self, x):
        axes = tuple(range(x.ndim - 1))
        x32 = x.astype(jnp.float32)
        mean = x32.mean(axes)
        var = jnp.maximum(jnp.square(x32).mean(axes) - jnp.square(mean), 0.0)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            self.mean.value = MOMENTUM * self.mean.value + (1 - MOMENTUM) * mean
            self.var.value = MOMENTUM * self.var.value + (1 - MOMENTUM) * var
        return mean, var


def convolve_and_normalize(
    conv: Conv,
    norm: BatchNorm,
    x: Float[Array, "N H W channels"],
    cells: Cells = None,
    blocks: tuple[int, int] = (1, 1),
) -> Float[Array, "N h w out"]:
    """Return ``norm(conv(x, cells))``; ``blocks`` as in ``Conv``, with a frozen norm only.

    A frozen norm multiplies the kernel instead of the map: a smaller array and fewer roundings in
    half precision. A GPU's library adds the remaining offset together with a product. (XLA fuses
    both with a convolution on CPUs and TPUs, but not into a GPU's libraries.)
    """
    if not norm.frozen:
        return norm(conv(x, cells))
    multiplier, offset = norm.affine()
    out = conv(x, cells, multiplier, blocks)
    return out + jnp.tile(offset, blocks[1] ** 2).astype(out.dtype)
