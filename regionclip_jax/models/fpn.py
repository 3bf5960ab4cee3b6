"""Feature pyramid: p2 to p6 from a trunk's four stages. NHWC.

Source: docs/reference/localizers.md#fpn.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.models.convolution import Cells, Conv
from regionclip_jax.models.frozen_batch_norm import BatchNorm, convolve_and_normalize


class FPN(nn.Module):
    """Lateral 1x1 convolutions, nearest upsampling from coarse to fine, 3x3 output convolutions.

    With ``norm`` (the large-scale-jitter variant) convolutions have a batch norm instead of a bias.
    """

    channels: int
    norm: bool
    frozen_norm: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, stages: list[Float[Array, "B _ _ _"]], cells: list[Cells]
    ) -> list[Float[Array, "B _ _ c"]]:
        """Return levels of stride 4, 8, 16, 32, 64 from stages of stride 4, 8, 16, 32.

        Args:
            cells: each image's part of every stage.

        Raises:
            ValueError: a stage is not exactly twice as large as the next.
        """
        levels, above = [], None
        for number in reversed(range(2, 2 + len(stages))):
            x = self._convolve(stages[number - 2], None, 1, f"lateral{number}")
            if above is not None:
                if x.shape[1:3] != (2 * above.shape[1], 2 * above.shape[2]):
                    raise ValueError(
                        f"feature pyramid: levels of {x.shape[1:3]} and {above.shape[1:3]} cells; "
                        "the sides of the canvas must be multiples of 32"
                    )
                x = x + above.repeat(2, 1).repeat(2, 2)
            above = x
            levels.insert(0, self._convolve(x, cells[number - 2], 3, f"output{number}"))
        return [*levels, levels[-1][:, ::2, ::2]]

    def _convolve(self, x, cells: Cells, kernel_size: int, name: str):
        # The sum of the stages keeps about their scale; he_normal would double each variance.
        init = nn.initializers.lecun_uniform()
        conv = Conv(self.channels, kernel_size, 1, self.dtype, not self.norm, init, name=name)
        if not self.norm:
            return conv(x, cells)
        norm = BatchNorm(self.channels, self.frozen_norm, name=f"{name}_norm")
        return convolve_and_normalize(conv, norm, x, cells)
