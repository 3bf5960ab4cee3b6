"""EVA-02-CLIP's image tower, with a dense form for regions.

Source: docs/reference/towers.md#eva-02; EVA-CLIP (Sun et al., 2023), EVA-02 (Fang et al., 2023). A
ViT with a class token, learned positions and, on queries and keys, rotary positions in rows and
columns. Its MLP has a gate. Attention and MLP have a layer norm before their last map.

The region path is that of ``models.vision_transformer``, as in CLIPSelf (Wu et al., ICLR 2024): the
last block's attention is each patch token's own value, through the inner norm and the output map.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.models.patch_grid import (
    PatchTowerConfig,
    PositionResize,
    cells_and_mask,
    chosen_maps,
    resized_positions,
)
from regionclip_jax.models.rematerialization import RematPolicy
from regionclip_jax.models.transformer_blocks import (
    Block,
    BlockStack,
    dot_product_attention,
    layer_norm,
)
from regionclip_jax.structures import ImageFeatures

# The wavelengths of rotary positions go up to nearly this many times 2 pi.
_ROTARY_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class EVAConfig(PatchTowerConfig):
    """Architecture of an EVA-02 image tower; the properties are those of ``models.towers``."""

    # Side of a patch in pixels.
    patch_size: int
    layers: int
    # Width of the residual stream.
    width: int
    # The channels of a head are a multiple of 4: cosine and sine of rows and of columns.
    heads: int
    # Hidden channels of the MLP, for gate and value each.
    mlp_width: int
    # Epsilon of the layer norms.
    eps: float = 1e-6
    # Interpolation of the learned positions at another grid than their own.
    position_resize: PositionResize = "bicubic_antialiased"
    # Side of the grid, in patches, over which rotary positions count 0, 1, 2, ...
    rotary_grid: int = 16


class Rotation(NamedTuple):
    """Rotary positions of tokens: cosines and sines of the angle of each pair of channels."""

    cos: Float[Array, "#B T pairs"]
    sin: Float[Array, "#B T pairs"]


def rotary_positions(
    config: EVAConfig, height: int, width: int, cells: Int[Array, "B 2"] | None = None
) -> Rotation:
    """Return the rotation of the class token, which is none, and of ``height x width`` patches.

    Patch i of n along an axis has the position ``rotary_grid * i / n``. Rows turn the first half of
    a head's channels, columns the second.

    Args:
        cells: (height, width) of each image's patches; None means all.
    """
    num_frequencies = config.width // config.heads // 4
    frequencies = _ROTARY_BASE ** -(jnp.arange(num_frequencies) / num_frequencies)
    # A masked row has no patches.
    counts = jnp.array([[height, width]]) if cells is None else jnp.maximum(cells, 1)
    rows, columns = (
        (config.rotary_grid / count)[:, None, None] * jnp.arange(side)[:, None] * frequencies
        for count, side in zip(counts.T, (height, width), strict=True)
    )
    shape = (len(counts), height, width, num_frequencies)
    angles = jnp.concatenate(
        [jnp.broadcast_to(rows[:, :, None], shape), jnp.broadcast_to(columns[:, None], shape)], -1
    )
    angles = angles.reshape(len(counts), height * width, 2 * num_frequencies)
    angles = jnp.pad(angles, ((0, 0), (1, 0), (0, 0)))
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "N T heads d"], rotation: Rotation) -> Float[Array, "N T heads d"]:
    """Turn each pair of adjacent channels by its angle, in fp32."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = (part[:, :, None] for part in rotation)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.reshape(x.shape).astype(x.dtype)


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions and a layer norm before the output map.

    Queries and values have a bias, keys have none.
    """

    sizes: EVAConfig
    dtype: jnp.dtype

    def setup(self):
        def projection(use_bias: bool = True, gain: float = 1.0) -> nn.Dense:
            init = nn.initializers.variance_scaling(gain**2, "fan_in", "normal")
            return nn.Dense(self.sizes.width, use_bias, dtype=self.dtype, kernel_init=init)

        self.q_proj = projection()
        self.k_proj = projection(use_bias=False)
        self.v_proj = projection()
        self.ln_inner = layer_norm(self.sizes.eps, self.dtype)
        self.out_proj = projection(gain=(2 * self.sizes.layers) ** -0.5)

    def __call__(
        self,
        x: Float[Array, "N T width"],
        mask: Bool[Array, "#N #T T"] | None,
        rotation: Rotation,
    ) -> Float[Array, "N T width"]:
        num, tokens, width = x.shape
        heads = (num, tokens, self.sizes.heads, width // self.sizes.heads)
        query, key, value = (
            projection(x).reshape(heads) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, rotation), rotate(key, rotation)
        mixed = dot_product_attention(query, key, value, mask)
        return self.out_proj(self.ln_inner(mixed.reshape(num, tokens, width)))

    def values_only(self, x: Float[Array, "N T width"]) -> Float[Array, "N T width"]:
        """Project each token's own value: attention of every token to itself only."""
        return self.out_proj(self.ln_inner(self.v_proj(x)))


class GatedMLP(nn.Module):
    """width -> silu(gate) * value -> layer norm -> width."""

    sizes: EVAConfig
    dtype: jnp.dtype

    def setup(self):
        c, normal = self.sizes, nn.initializers.normal
        init = normal(c.width**-0.5)
        self.gate = nn.Dense(c.mlp_width, dtype=self.dtype, kernel_init=init)
        self.value = nn.Dense(c.mlp_width, dtype=self.dtype, kernel_init=init)
        self.ln_inner = layer_norm(c.eps, self.dtype)
        proj_init = normal(c.mlp_width**-0.5 * (2 * c.layers) ** -0.5)
        self.c_proj = nn.Dense(c.width, dtype=self.dtype, kernel_init=proj_init)

    def __call__(self, x: Float[Array, "N T width"]) -> Float[Array, "N T width"]:
        return self.c_proj(self.ln_inner(nn.silu(self.gate(x)) * self.value(x)))


class EVABlock(Block):
    """A residual block whose attention and MLP are those above."""

    def setup(self):
        self.ln_1 = layer_norm(self.sizes.eps, self.dtype)
        self.attention = RotaryAttention(self.sizes, self.dtype)
        self.ln_2 = layer_norm(self.sizes.eps, self.dtype)
        self.mlp = GatedMLP(self.sizes, self.dtype)

    def __call__(
        self,
        x: Float[Array, "N T width"],
        mask: Bool[Array, "#N #T T"] | None,
        rotation: Rotation,
    ) -> Float[Array, "N T width"]:
        x = x + self.attention(self.ln_1(x), mask, rotation)
        return x + self.mlp(self.ln_2(x))


class EVATransformer(nn.Module):
    """EVA-02 image tower; learned and rotary positions follow any image size.

    ``frozen_norm`` has no effect: there are no batch norms.
    """

    config: EVAConfig
    resolution: int
    embed_dim: int
    frozen_norm: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: RematPolicy = "all"

    def setup(self):
        c = self.config
        side = c.grid_size(self.resolution)
        init = nn.initializers.normal(c.width**-0.5)
        self.patch_embedding = nn.Conv(
            c.width,
            (c.patch_size, c.patch_size),
            strides=c.patch_size,
            padding="VALID",
            dtype=self.dtype,
        )
        self.class_embedding = self.param("class_embedding", init, (c.width,))
        self.positional_embedding = self.param("positional_embedding", init, (side**2 + 1, c.width))
        self.blocks = BlockStack(c, self.dtype, self.remat, EVABlock)
        self.ln_post = layer_norm(c.eps, self.dtype)
        self.projection = nn.Dense(self.embed_dim, dtype=self.dtype, kernel_init=init)

    def features(
        self, pixels: Float[Array, "B H W 3"], sizes: Int[Array, "B 2"] | None = None
    ) -> ImageFeatures:
        """Compute the dense map for regions and the class token's embedding of the whole image.

        Args:
            sizes: (height, width) of each image; None treats the canvas as the image.
        """
        return self.features_and_blocks(pixels, sizes, ())[0]

    def features_and_blocks(
        self,
        pixels: Float[Array, "B H W 3"],
        sizes: Int[Array, "B 2"] | None,
        blocks: tuple[int, ...],
    ) -> tuple[ImageFeatures, list[Float[Array, "B h w width"]]]:
        """Compute ``features``, and the maps of blocks as ``models.towers.BlockImageTower``."""
        c = self.config
        patches = self.patch_embedding(pixels.astype(self.dtype))
        num, height, width, channels = patches.shape
        cells, mask = cells_and_mask(sizes, c.patch_size, height, width)
        first = jnp.broadcast_to(self.class_embedding.astype(self.dtype), (num, 1, channels))
        tokens = jnp.concatenate([first, patches.reshape(num, height * width, channels)], 1)
        positions = resized_positions(
            self.positional_embedding,
            c.grid_size(self.resolution),
            height,
            width,
            cells,
            c.position_resize,
        )
        tokens = tokens + positions.astype(self.dtype)
        rotation = rotary_positions(c, height, width, cells)
        inputs = self.blocks.inputs(tokens, mask, rotation)
        whole = self.project(self.ln_post(self.blocks.last(inputs[-1], mask, rotation)[:, 0]))
        last = self.blocks.last_values_only(inputs[-1][:, 1:])
        shape = (num, height, width, channels)
        maps = chosen_maps(inputs, last, blocks, shape)
        return ImageFeatures(self.ln_post(last).reshape(shape), whole, cells), maps

    def project(self, x: Float[Array, "... width"]) -> Float[Array, "... D"]:
        """Map tokens after the last norm, or averages of them, to embeddings; not normalised."""
        return self.projection(x)

    def embed_crops(self, crops: Float[Array, "N P P width"]) -> Float[Array, "N D"]:
        """Average and project crops of the dense map.

        The projection is linear with a bias, so the average of projected tokens is the same.
        """
        return self.project(crops.mean((1, 2)))
