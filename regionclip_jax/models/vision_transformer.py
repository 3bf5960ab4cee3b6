"""CLIP's ViT image tower, with a dense form for regions.

Spec: models_pretrain 1.10 for the tower. The reference never got its ViT branch to work, so the
region path is a choice: as MaskCLIP (Zhou et al., ECCV 2022) and CLIPSelf (Wu et al., ICLR 2024)
do, the last block's attention is replaced by each patch token's own value and output projection
(residual and MLP stay, as in CLIPSelf), the tokens pass ``ln_post``, a region is their RoIAligned
average, and the projection comes last (it is linear, so pooling before it changes nothing). The
class token of the ordinary last block remains the embedding of the whole picture.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from regionclip_jax.models.transformer_blocks import BlockStack, LayerNorm


class VisionTransformer(nn.Module):
    """ViT with a class token; positional embeddings are resized to any canvas."""

    grid_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    embed_dim: int
    dtype: jnp.dtype = jnp.float32

    # A region is one RoIAligned average over the token grid.
    crop_size = 1

    @property
    def stride(self) -> int:
        return self.patch_size

    def setup(self):
        init = nn.initializers.normal(self.width**-0.5)
        self.patch_embedding = nn.Conv(
            self.width,
            (self.patch_size, self.patch_size),
            strides=self.patch_size,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
        )
        self.class_embedding = self.param("class_embedding", init, (self.width,))
        self.positional_embedding = self.param(
            "positional_embedding", init, (self.grid_size**2 + 1, self.width)
        )
        self.ln_pre = LayerNorm()
        self.blocks = BlockStack(self.num_layers, self.num_heads, self.dtype)
        self.ln_post = LayerNorm()
        self.projection = self.param("projection", init, (self.width, self.embed_dim))

    def _positions(self, height: int, width: int) -> Float[Array, "T width"]:
        """Embeddings of the positions of ``height x width`` patches (bicubic; class row kept)."""
        if (height, width) == (self.grid_size, self.grid_size):
            return self.positional_embedding
        grid = self.positional_embedding[1:].reshape(self.grid_size, self.grid_size, self.width)
        grid = jax.image.resize(grid, (height, width, self.width), "bicubic", antialias=False)
        rows = grid.reshape(height * width, self.width)
        return jnp.concatenate([self.positional_embedding[:1], rows])

    def _tokens_before_last(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B T width"]:
        patches = self.patch_embedding(pixels.astype(self.dtype))
        num, height, width, channels = patches.shape
        patches = patches.reshape(num, height * width, channels)
        first = jnp.broadcast_to(self.class_embedding.astype(self.dtype), (num, 1, channels))
        tokens = jnp.concatenate([first, patches], 1)
        tokens = self.ln_pre(tokens + self._positions(height, width).astype(self.dtype))
        return self.blocks.all_but_last(tokens)

    def features(
        self, pixels: Float[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B h w width"], Float[Array, "B D"]]:
        """The dense map for regions, and the class token's embedding of the whole canvas."""
        tokens = self._tokens_before_last(pixels)
        whole = self.ln_post(self.blocks.last(tokens)[:, 0]) @ self.projection.astype(self.dtype)
        dense = self.ln_post(self.blocks.last_values_only(tokens[:, 1:]))
        height, width = (side // self.patch_size for side in pixels.shape[1:3])
        return dense.reshape(pixels.shape[0], height, width, self.width), whole

    def embed_crops(self, crops: Float[Array, "N P P width"]) -> Float[Array, "N D"]:
        """Averaged crops of the dense map through the projection; not normalised."""
        return crops.mean((1, 2)).astype(self.dtype) @ self.projection.astype(self.dtype)
