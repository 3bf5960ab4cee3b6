"""Mask head of a detector: one mask per region, for all classes.

Source: docs/reference/detection.md#masks. The input is layer4's map of a region, not the pooled
embedding.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.ops.relu import relu


class MaskHead(nn.Module):
    """Transposed 2x2 convolution of stride 2, a ReLU, and a logit for every cell.

    ``deconv/kernel`` is [2, 2, in, out]; torch keeps [in, out, 2, 2]. The windows do not overlap,
    so the convolution is a matrix product from each cell to its four output cells.
    """

    features: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Float[Array, "N h w channels"]) -> Float[Array, "N 2*h 2*w"]:
        """Return logits in fp32."""
        num, height, width, channels = maps.shape
        kernel, bias = _Deconvolution(channels, self.features, name="deconv")()
        x = jnp.einsum("nhwc,ijcf->nhiwjf", maps.astype(self.dtype), kernel.astype(self.dtype))
        x = x.reshape(num, 2 * height, 2 * width, self.features)
        x = relu(x + bias.astype(self.dtype))
        predictor = nn.Dense(
            1, kernel_init=nn.initializers.normal(0.001), dtype=self.dtype, name="predictor"
        )
        return predictor(x)[..., 0].astype(jnp.float32)


class _Deconvolution(nn.Module):
    channels: int
    features: int

    @nn.compact
    def __call__(self):
        shape = (2, 2, self.channels, self.features)
        init = nn.initializers.he_normal(in_axis=2, out_axis=3, batch_axis=(0, 1))
        return self.param("kernel", init, shape), self.param(
            "bias", nn.initializers.zeros, (self.features,)
        )
