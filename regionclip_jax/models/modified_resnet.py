"""CLIP's modified ResNet, split where regions need it: stem..layer3 | layer4 | attention pool.

Source: docs/reference/towers.md#stem, docs/reference/towers.md#bottleneck. The stem has three 3x3
convolutions and an average pool. Strides are average pools after the 3x3 convolution and in the
shortcut. Every pool drops an odd last row or column. NHWC. The trunk's output (``res4``) has stride
16.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.models.attention_pool import AttentionPool
from regionclip_jax.models.convolution import Cells, Conv, after_pool, after_stride
from regionclip_jax.models.frozen_batch_norm import BatchNorm, convolve_and_normalize
from regionclip_jax.models.rematerialization import RematPolicy, with_remat
from regionclip_jax.ops.backend import target_backend
from regionclip_jax.ops.blocks import average_of_blocks
from regionclip_jax.ops.convolution import average_pool_2x2, relu
from regionclip_jax.structures import ImageFeatures

EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Architecture of CLIP's ResNet; the properties are those of ``models.towers``."""

    # Blocks of layer1..layer4.
    layers: tuple[int, int, int, int]
    # Channels after the stem.
    width: int
    # Heads of the attention pool.
    heads: int

    # Canvas pixels per cell of res4, the map that regions are cropped from.
    stride: ClassVar[int] = 16
    has_batch_norms: ClassVar[bool] = True

    @property
    def crop_channels(self) -> int:
        """Channels of layer4, the input of a mask head and of the attention pool."""
        return layer4_channels(self.width)

    def grid_size(self, resolution: int) -> int:
        """Return the side of layer4's map, whose stride is twice that of res4."""
        return resolution // (2 * self.stride)

    def crop_size(self, resolution: int) -> int:
        """Return the side of the crops of res4: 14 for RN50, 18 for RN50x4."""
        return 2 * self.grid_size(resolution)


def layer4_channels(width: int) -> int:
    """Return the channels of layer4 for a stem of ``width`` channels."""
    return width * 2**3 * EXPANSION


class Stem(nn.Module):
    """Stem: pixels to features of stride 4; ``cells`` are the images' sizes in pixels."""

    width: int
    frozen_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W 3"], cells: Cells = None
    ) -> Float[Array, "N h w channels"]:
        plan = ((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))
        before, after = 1, self._block(x)
        for index, (features, strides) in enumerate(plan, start=1):
            conv = Conv(features, 3, strides, self.dtype, name=f"conv{index}")
            norm = BatchNorm(features, self.frozen_norm, name=f"norm{index}")
            x = relu(convolve_and_normalize(conv, norm, x, cells, (before, after)))
            cells, before = after_stride(cells) if strides == 2 else cells, after
        return average_of_blocks(x, after) if after > 1 else average_pool_2x2(x)

    def _block(self, x) -> int:
        """Side of the blocks of cells in channels (``ops.blocks``): a pool's window on TPUs."""
        whole = x.shape[1] % 4 == x.shape[2] % 4 == 0
        return 2 if target_backend() == "tpu" and self.frozen_norm and whole else 1


def stem_cells(sizes: Cells) -> Cells:
    """Return an image's part of the stem's output, from its size in pixels."""
    return after_pool(after_stride(sizes))


class Bottleneck(nn.Module):
    """1x1, 3x3, (pool), 1x1 with a shortcut; ``stride`` 2 pools both branches."""

    planes: int
    stride: int
    frozen_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W channels"], cells: Cells = None
    ) -> Float[Array, "N h w out"]:
        def convolve(x, features, size, name, suffix=""):
            conv = Conv(features, size, 1, self.dtype, name=f"{name}conv{suffix}")
            norm = BatchNorm(features, self.frozen_norm, name=f"{name}norm{suffix}")
            return convolve_and_normalize(conv, norm, x, cells)

        features, shortcut = self.planes * EXPANSION, x
        out = relu(convolve(x, self.planes, 1, "", "1"))
        out = relu(convolve(out, self.planes, 3, "", "2"))
        if self.stride > 1:
            out = average_pool_2x2(out)
        out = convolve(out, features, 1, "", "3")
        if self.stride > 1 or x.shape[-1] != features:
            if self.stride > 1:
                shortcut = average_pool_2x2(shortcut)
            shortcut = convolve(shortcut, features, 1, "downsample_")
        return relu(out + shortcut)


class Stage(nn.Module):
    """``num_blocks`` bottlenecks; the first one strides."""

    planes: int
    num_blocks: int
    stride: int
    frozen_norm: bool
    dtype: jnp.dtype
    remat: RematPolicy = "all"

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W channels"], cells: Cells = None
    ) -> Float[Array, "N h w out"]:
        block = with_remat(Bottleneck, self.remat)
        for index in range(self.num_blocks):
            stride = self.stride if index == 0 else 1
            x = block(self.planes, stride, self.frozen_norm, self.dtype, name=f"block{index}")(
                x, cells
            )
            cells = after_pool(cells) if stride == 2 else cells
        return x


class ModifiedResNet(nn.Module):
    """CLIP's ResNet image tower.

    ``features`` runs once per image; ``embed_crops`` turns RoIAlign crops of the map into
    embeddings. A whole image of the training resolution is the crop of its own box: RoIAlign then
    samples every cell's centre and is the identity.
    """

    config: ResNetConfig
    resolution: int
    embed_dim: int
    frozen_norm: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: RematPolicy = "all"

    def setup(self):
        c = self.config
        stem = with_remat(Stem, self.remat)
        self.stem = stem(c.width, self.frozen_norm, self.dtype)
        stages = [
            Stage(
                c.width * 2**index,
                c.layers[index],
                1 if index == 0 else 2,
                self.frozen_norm,
                self.dtype,
                self.remat,
            )
            for index in range(4)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attention_pool = AttentionPool(
            c.grid_size(self.resolution), c.heads, self.embed_dim, self.dtype
        )

    def features(self, pixels: Float[Array, "B H W 3"], sizes: Cells = None) -> ImageFeatures:
        """Compute ``res4`` (stride 16, 16 * width channels) of normalised pixels.

        Args:
            sizes: (height, width) of each image, to exclude the padding; see
                ``models.convolution``.
        """
        cells = stem_cells(sizes)
        x = self.stem(pixels.astype(self.dtype), sizes)
        x = self.layer2(self.layer1(x, cells), cells)
        cells = after_pool(cells)
        return ImageFeatures(self.layer3(x, cells), None, after_pool(cells))

    def embed_crops(self, crops: Float[Array, "N P P channels"]) -> Float[Array, "N D"]:
        """Embed crops of ``res4`` by layer4 and attention pooling; not normalised."""
        return self.pool_crops(self.crop_features(crops))

    def crop_features(self, crops: Float[Array, "N P P channels"]) -> Float[Array, "N p p out"]:
        """Compute the first half of ``embed_crops``: layer4's maps, ``grid_size`` cells a side."""
        return self.layer4(crops)

    def pool_crops(self, maps: Float[Array, "N p p out"]) -> Float[Array, "N D"]:
        """Compute the second half of ``embed_crops``: attention pooling."""
        return self.attention_pool(maps)
