"""CLIP's ViT image tower, with a dense form for regions.

Source of the tower: docs/reference/towers.md#vit. The reference does not use its ViT. The region
path follows MaskCLIP (Zhou et al., ECCV 2022) and CLIPSelf (Wu et al., ICLR 2024).
The last block's attention is replaced by each patch token's own value and output projection
(residual and MLP stay, as in CLIPSelf). The tokens pass ``ln_post``, and a region is their RoIAlign
average. The projection comes last; it is linear, so pooling before it changes nothing. The class
token of the ordinary last block remains the embedding of the whole image.

If the size of each image is given, padding has no effect (``models.patch_grid``).
"""

import dataclasses

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
from regionclip_jax.models.transformer_blocks import Activation, BlockStack, layer_norm
from regionclip_jax.structures import ImageFeatures


@dataclasses.dataclass(frozen=True)
class ViTConfig(PatchTowerConfig):
    """Architecture of CLIP's ViT; the properties are those of ``models.towers``."""

    # Side of a patch in pixels.
    patch_size: int
    layers: int
    # Width of the residual stream.
    width: int
    heads: int
    activation: Activation = "quick_gelu"
    # Epsilon of the layer norms.
    eps: float = 1e-5
    # Interpolation of positional embeddings at another grid than their own.
    position_resize: PositionResize = "bicubic_antialiased"
    # Hidden channels of the MLPs; None: four times the width.
    mlp_width: int | None = None


class VisionTransformer(nn.Module):
    """ViT with a class token; positional embeddings are resized to any image size.

    ``frozen_norm`` has no effect: there are no batch norms.
    """

    config: ViTConfig
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
        init = nn.initializers.normal(c.width**-0.5)
        self.patch_embedding = nn.Conv(
            c.width,
            (c.patch_size, c.patch_size),
            strides=c.patch_size,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
        )
        self.class_embedding = self.param("class_embedding", init, (c.width,))
        self.positional_embedding = self.param(
            "positional_embedding", init, (self.grid_size**2 + 1, c.width)
        )
        self.ln_pre = layer_norm(c.eps, self.dtype)
        self.blocks = BlockStack(c, self.dtype, self.remat)
        self.ln_post = layer_norm(c.eps, self.dtype)
        self.projection = self.param("projection", init, (c.width, self.embed_dim))

    def _positions(
        self, height: int, width: int, cells: Int[Array, "B 2"] | None = None
    ) -> Float[Array, "#B T width"]:
        """Positional embeddings of ``height x width`` patches, as ``resized_positions``."""
        rule = self.config.position_resize
        return resized_positions(
            self.positional_embedding, self.grid_size, height, width, cells, rule
        )

    def _block_inputs(
        self,
        pixels: Float[Array, "B H W 3"],
        cells: Int[Array, "B 2"] | None,
        mask: Bool[Array, "B 1 T"] | None,
    ) -> list[Float[Array, "B T width"]]:
        patches = self.patch_embedding(pixels.astype(self.dtype))
        num, height, width, channels = patches.shape
        patches = patches.reshape(num, height * width, channels)
        first = jnp.broadcast_to(self.class_embedding.astype(self.dtype), (num, 1, channels))
        tokens = jnp.concatenate([first, patches], 1)
        tokens = self.ln_pre(tokens + self._positions(height, width, cells).astype(self.dtype))
        return self.blocks.inputs(tokens, mask)

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
        patch_size = self.config.patch_size
        height, width = (side // patch_size for side in pixels.shape[1:3])
        cells, mask = cells_and_mask(sizes, patch_size, height, width)
        inputs = self._block_inputs(pixels, cells, mask)
        whole = self.project(self.ln_post(self.blocks.last(inputs[-1], mask)[:, 0]))
        last = self.blocks.last_values_only(inputs[-1][:, 1:])
        shape = (pixels.shape[0], height, width, self.config.width)
        maps = chosen_maps(inputs, last, blocks, shape)
        return ImageFeatures(self.ln_post(last).reshape(shape), whole, cells), maps

    def project(self, x: Float[Array, "... width"]) -> Float[Array, "... D"]:
        """Map tokens after the last norm, or averages of them, to embeddings; not normalised."""
        return x.astype(self.dtype) @ self.projection.astype(self.dtype)

    def embed_crops(self, crops: Float[Array, "N P P width"]) -> Float[Array, "N D"]:
        """Average and project crops of the dense map; not normalised."""
        return self.project(crops.mean((1, 2)))
