"""The convolution of all trunks.

An image lies in the corner of a larger canvas. The rest of the canvas is zero at first. After a
norm and an activation it is not, and it affects the image's border. ``Cells`` are the (height,
width) of each image's own part of a map. With them the rest is set to zero before every
convolution, as in the padding of a single image. Features then do not depend on the canvas. None
keeps the rest, as in the batches of the reference's pretraining.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from regionclip_jax.models.rematerialization import PRODUCT
from regionclip_jax.ops.blocks import convolve_blocks, convolve_into_blocks, to_blocks
from regionclip_jax.ops.convolution import convolve, with_multiplier
from regionclip_jax.ops.normalization import real_pixels

Cells = Int[Array, "N 2"] | None


def zero_outside(
    x: Float[Array, "N H W channels"], cells: Cells, block: int = 1
) -> Float[Array, "N H W channels"]:
    """Set a map of cells, or of blocks of cells, to zero outside each image's own part."""
    if cells is None:
        return x
    real = real_pixels(cells, x.shape[1] * block, x.shape[2] * block)[..., None]
    if block > 1:
        real = jnp.repeat(to_blocks(real, block), x.shape[-1] // block**2, -1)
    return jnp.where(real, x, jnp.zeros((), x.dtype))


def after_stride(cells: Cells) -> Cells:
    """Return an image's part of a map after a convolution or a padded pool of stride 2."""
    return None if cells is None else (cells + 1) // 2


def after_pool(cells: Cells) -> Cells:
    """Return an image's part of a map after a 2x2 pool, which drops an odd last row or column."""
    return None if cells is None else cells // 2


class Conv(nn.Module):
    """Convolution with an odd kernel, padded by half of it, so that stride 1 keeps the size.

    ``multiplier`` scales the output (before the bias), for a norm that follows. ``blocks`` are the
    sides of the blocks of cells in channels (``ops.blocks``), for the input and the output. NHWC.
    Parameters ``kernel`` [k, k, in, out] and, with ``use_bias``, ``bias``.
    """

    features: int
    kernel_size: int
    strides: int = 1
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N H W channels"],
        cells: Cells = None,
        multiplier: Float[Array, " features"] | None = None,
        blocks: tuple[int, int] = (1, 1),
    ) -> Float[Array, "N h w out"]:
        size, step = self.kernel_size, self.strides
        before, after = blocks
        shape = (size, size, x.shape[-1] // before**2, self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        # A kernel of one cell reads no neighbours.
        x = x if size == 1 else zero_outside(x, cells, before)
        if blocks == (1, 1):
            apply = functools.partial(convolve, stride=step)
        elif before == 1:
            apply = functools.partial(convolve_into_blocks, stride=step, side=after)
        else:
            apply = functools.partial(convolve_blocks, side=after)
        if multiplier is None:
            x = apply(x, kernel)
        else:
            x = with_multiplier(apply, x, kernel, multiplier)
        x = checkpoint_name(x, PRODUCT)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


class TransposedConv(nn.Module):
    """Transposed 2x2 convolution of stride 2 with a bias: a map of twice the sides. NHWC.

    ``kernel`` is [2, 2, in, out]; torch keeps [in, out, 2, 2]. The windows do not overlap, so the
    convolution is a matrix product from each cell to its four output cells.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N H W channels"]) -> Float[Array, "N 2*H 2*W features"]:
        num, height, width, channels = x.shape
        init = nn.initializers.he_normal(in_axis=2, out_axis=3, batch_axis=(0, 1))
        kernel = self.param("kernel", init, (2, 2, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = jnp.einsum("nhwc,ijcf->nhiwjf", x.astype(self.dtype), kernel.astype(self.dtype))
        x = x.reshape(num, 2 * height, 2 * width, self.features)
        return x + bias.astype(self.dtype)
