"""Head of a region proposal network, shared by all levels. NHWC.

Source: docs/reference/localizers.md#head.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.models.convolution import Cells, Conv
from regionclip_jax.ops.relu import relu


class RPNHead(nn.Module):
    """3x3 convolutions, then an objectness logit and four deltas for each anchor of each cell."""

    num_anchors: int
    num_convs: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "B h w c"], cells: Cells = None
    ) -> tuple[Float[Array, "B anchors"], Float[Array, "B anchors 4"]]:
        """Return logits and deltas in the order of ``ops.anchors``: row, column, cell's anchor."""
        num, channels = features.shape[0], features.shape[-1]
        x = features
        for index in range(self.num_convs):
            x = relu(Conv(channels, 3, 1, self.dtype, True, name=f"conv{index}")(x, cells))
        logits = Conv(self.num_anchors, 1, 1, self.dtype, True, name="objectness")(x)
        deltas = Conv(4 * self.num_anchors, 1, 1, self.dtype, True, name="deltas")(x)
        return (
            logits.reshape(num, -1).astype(jnp.float32),
            deltas.reshape(num, -1, 4).astype(jnp.float32),
        )
