"""Detectron2's ResNet, the trunk of the reference's localizers.

Source: docs/reference/localizers.md#trunk. A 7x7 stem and a max pool; bottlenecks whose first 1x1
convolution strides (``STRIDE_IN_1X1``); every norm frozen, or live to train from scratch. NHWC.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.models.convolution import Cells, Conv, after_stride, zero_outside
from regionclip_jax.models.frozen_batch_norm import BatchNorm, convolve_and_normalize
from regionclip_jax.models.rematerialization import RematPolicy, with_remat
from regionclip_jax.ops.convolution import relu


class Stem(nn.Module):
    """Stem: pixels to features of stride 4; ``cells`` are the images' sizes in pixels."""

    width: int
    frozen_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], cells: Cells = None
    ) -> Float[Array, "B h w width"]:
        conv = Conv(self.width, 7, 2, self.dtype, name="conv1")
        norm = BatchNorm(self.width, self.frozen_norm, name="norm1")
        x = relu(convolve_and_normalize(conv, norm, x, cells))
        # Zeros act as minus infinity in the pool: after the ReLU nothing is below them.
        x = zero_outside(x, after_stride(cells))
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class Bottleneck(nn.Module):
    """1x1 (which strides), 3x3, 1x1, and a shortcut with a projection if the channels change."""

    planes: int
    features: int
    stride: int
    frozen_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W channels"], cells: Cells = None
    ) -> Float[Array, "B h w features"]:
        def convolve(x, features, size, stride, name, suffix="", cells=None):
            conv = Conv(features, size, stride, self.dtype, name=f"{name}conv{suffix}")
            norm = BatchNorm(features, self.frozen_norm, name=f"{name}norm{suffix}")
            return convolve_and_normalize(conv, norm, x, cells)

        out = relu(convolve(x, self.planes, 1, self.stride, "", "1"))
        # The first convolution applied the stride.
        cells = after_stride(cells) if self.stride == 2 else cells
        out = relu(convolve(out, self.planes, 3, 1, "", "2", cells))
        out = convolve(out, self.features, 1, 1, "", "3")
        if x.shape[-1] != self.features:
            x = convolve(x, self.features, 1, self.stride, "shortcut_")
        return relu(out + x)


class Stage(nn.Module):
    """``num_blocks`` bottlenecks; the first one strides."""

    planes: int
    features: int
    num_blocks: int
    stride: int
    frozen_norm: bool
    dtype: jnp.dtype
    remat: RematPolicy = "all"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W channels"], cells: Cells = None
    ) -> Float[Array, "B h w features"]:
        block = with_remat(Bottleneck, self.remat)
        for index in range(self.num_blocks):
            stride = self.stride if index == 0 else 1
            x = block(
                self.planes,
                self.features,
                stride,
                self.frozen_norm,
                self.dtype,
                name=f"block{index}",
            )(x, cells)
            cells = after_stride(cells) if stride == 2 else cells
        return x


class DetectronResNet(nn.Module):
    """Trunk with outputs res2 (stride 4), res3 (8), res4 (16) and, with four counts, res5 (32).

    ``bottleneck_width`` and ``features`` are res2's; both double from stage to stage.
    """

    blocks: tuple[int, ...]
    stem_width: int
    bottleneck_width: int
    features: int
    frozen_norm: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: RematPolicy = "all"

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "B H W 3"], sizes: Cells = None
    ) -> list[Float[Array, "B _ _ _"]]:
        stem = with_remat(Stem, self.remat)
        x = stem(self.stem_width, self.frozen_norm, self.dtype, name="stem")(
            pixels.astype(self.dtype), sizes
        )
        cells, outputs = after_stride(after_stride(sizes)), []
        for index, num_blocks in enumerate(self.blocks):
            stride = 1 if index == 0 else 2
            x = Stage(
                self.bottleneck_width * 2**index,
                self.features * 2**index,
                num_blocks,
                stride,
                self.frozen_norm,
                self.dtype,
                self.remat,
                name=f"res{index + 2}",
            )(x, cells)
            cells = after_stride(cells) if stride == 2 else cells
            outputs.append(x)
        return outputs
