"""The convolution that all trunks share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Conv(nn.Module):
    """A convolution with an odd kernel, padded by half of it, so that stride 1 keeps the size.

    NHWC. Parameters ``kernel`` [k, k, in, out] and, with ``use_bias``, ``bias``.
    """

    features: int
    kernel_size: int
    strides: int = 1
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W channels"]) -> Float[Array, "N h w features"]:
        size, step = self.kernel_size, self.strides
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape).astype(self.dtype)
        if size == 1:
            # The same number as a matrix product, whose gradient is several times faster on CPU.
            x = x[:, ::step, ::step] @ kernel[0, 0]
        else:
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (step, step),
                [(size // 2, size // 2)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x
