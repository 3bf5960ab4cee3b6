"""SigLIP's image tower: a ViT without class token, and an attention-pooling (MAP) head.

Source: Zhai et al., ICCV 2023 (SigLIP) and Tschannen et al., 2025 (SigLIP 2); names and numbers in
docs/reference/towers.md#siglip. The head attends from one learned query, the probe, to all tokens,
and its MLP follows. Its output is the embedding of the whole image; no projection follows.

The dense form is that of FG-CLIP 2: every block is ordinary, and the head's value and output
projections and its MLP are applied to each patch token. So each patch is its own only key, and the
map already holds embeddings. The MLP is not linear, so a region is the RoIAlign average of this
map, not the head's output for averaged tokens.

Sizes of images have the effect that they have for the ViT (``models.vision_transformer``): patches
without pixels of the image are not attended to, by the head either.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.models.patch_grid import PatchTowerConfig, PositionResize, resized_grid
from regionclip_jax.models.rematerialization import RematPolicy
from regionclip_jax.models.transformer_blocks import (
    MLP,
    Activation,
    BlockSizes,
    BlockStack,
    SelfAttention,
    dot_product_attention,
    layer_norm,
)
from regionclip_jax.ops.normalization import real_pixels
from regionclip_jax.structures import ImageFeatures


@dataclasses.dataclass(frozen=True)
class SigLIPImageConfig(PatchTowerConfig):
    """Architecture of SigLIP's image tower; the properties are those of ``models.towers``."""

    # Side of a patch in pixels.
    patch_size: int
    layers: int
    # Width of the residual stream, and of the embeddings.
    width: int
    # Attention heads, of the blocks and of the MAP head.
    heads: int
    activation: Activation = "gelu_tanh"
    # Epsilon of the layer norms.
    eps: float = 1e-6
    # Interpolation of positional embeddings at another grid than their own.
    position_resize: PositionResize = "bicubic"
    # Hidden channels of the MLPs, that of the MAP head too; None: four times the width.
    mlp_width: int | None = None


class PoolingAttention(SelfAttention):
    """Multi-head attention whose queries are not the tokens."""

    def pool(
        self,
        queries: Float[Array, "N Q width"],
        tokens: Float[Array, "N T width"],
        mask: Bool[Array, "#N 1 T"] | None,
    ) -> Float[Array, "N Q width"]:
        def heads(x):
            return x.reshape(*x.shape[:2], self.sizes.heads, x.shape[2] // self.sizes.heads)

        mixed = dot_product_attention(
            heads(self.q_proj(queries)),
            heads(self.k_proj(tokens)),
            heads(self.v_proj(tokens)),
            mask,
        )
        return self.out_proj(mixed.reshape(queries.shape))


class MapHead(nn.Module):
    """Attention pooling by one learned query: y + mlp(ln(y)), y the attention's output."""

    sizes: BlockSizes
    dtype: jnp.dtype

    def setup(self):
        init = nn.initializers.normal(self.sizes.width**-0.5)
        self.probe = self.param("probe", init, (self.sizes.width,))
        self.attention = PoolingAttention(self.sizes, self.dtype)
        self.ln = layer_norm(self.sizes.eps, self.dtype)
        self.mlp = MLP(self.sizes, self.dtype)

    def __call__(
        self, tokens: Float[Array, "N T width"], mask: Bool[Array, "#N 1 T"] | None
    ) -> Float[Array, "N width"]:
        """Return the embedding of all tokens."""
        shape = (tokens.shape[0], 1, self.sizes.width)
        probe = jnp.broadcast_to(self.probe.astype(self.dtype), shape)
        pooled = self.attention.pool(probe, tokens, mask)
        return (pooled + self.mlp(self.ln(pooled)))[:, 0]

    def dense(self, tokens: Float[Array, "N T width"]) -> Float[Array, "N T width"]:
        """Return the embedding of each token as if it were the only one."""
        values = self.attention.values_only(tokens)
        return values + self.mlp(self.ln(values))


class SigLIPImageTower(nn.Module):
    """ViT with a MAP head; positional embeddings are resized to any image size.

    ``frozen_norm`` has no effect: there are no batch norms.
    """

    config: SigLIPImageConfig
    resolution: int
    embed_dim: int
    frozen_norm: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: RematPolicy = "all"

    @property
    def grid_size(self) -> int:
        """Side of the grid of positional embeddings, in tokens."""
        return self.config.grid_size(self.resolution)

    def setup(self):
        c = self.config
        if c.width != self.embed_dim:
            raise ValueError(
                f"SigLIP: expected embeddings of the image tower's width {c.width}, found "
                f"embed_dim {self.embed_dim}"
            )
        self.patch_embedding = nn.Conv(
            c.width,
            (c.patch_size, c.patch_size),
            strides=c.patch_size,
            padding="VALID",
            dtype=self.dtype,
        )
        self.positional_embedding = self.param(
            "positional_embedding",
            nn.initializers.normal(c.width**-0.5),
            (self.grid_size**2, c.width),
        )
        self.blocks = BlockStack(c, self.dtype, self.remat)
        self.ln_post = layer_norm(c.eps, self.dtype)
        self.head = MapHead(c, self.dtype)

    def _positions(
        self, height: int, width: int, cells: Int[Array, "B 2"] | None
    ) -> Float[Array, "#B T width"]:
        if cells is None and (height, width) == (self.grid_size, self.grid_size):
            return self.positional_embedding[None]
        channels = self.config.width
        grid = self.positional_embedding.reshape(self.grid_size, self.grid_size, channels)
        return resized_grid(grid, height, width, cells, self.config.position_resize)

    def features(
        self, pixels: Float[Array, "B H W 3"], sizes: Int[Array, "B 2"] | None = None
    ) -> ImageFeatures:
        """Compute the map of embeddings for regions, and the embedding of the whole image.

        Args:
            sizes: (height, width) of each image; None treats the canvas as the image.
        """
        patches = self.patch_embedding(pixels.astype(self.dtype))
        num, height, width, channels = patches.shape
        cells = mask = None
        if sizes is not None:
            # Pixels behind the last whole patch of a canvas are dropped. A masked row, without
            # pixels, keeps one patch: a softmax over no key is NaN.
            cells = jnp.minimum(-(-sizes // self.config.patch_size), jnp.array([height, width]))
            seen = real_pixels(jnp.maximum(cells, 1), height, width)
            mask = seen.reshape(num, 1, height * width)
        tokens = patches.reshape(num, height * width, channels)
        tokens = tokens + self._positions(height, width, cells).astype(self.dtype)
        tokens = self.ln_post(self.blocks(tokens, mask))
        dense = self.head.dense(tokens).reshape(num, height, width, channels)
        return ImageFeatures(dense, self.head(tokens, mask), cells)

    def project(self, x: Float[Array, "... width"]) -> Float[Array, "... D"]:
        """Return cells of the map as they are: they are embeddings."""
        return x.astype(self.dtype)

    def embed_crops(self, crops: Float[Array, "N P P width"]) -> Float[Array, "N D"]:
        """Average crops of the map of embeddings; not normalised."""
        return crops.mean((1, 2)).astype(self.dtype)
