"""Grid of patches of ViT-like image towers: padding, and positions at any image size.

An image has the patches with any pixel of it. They attend to each other alone, and positions are
spread over them. The embedding then does not depend on the canvas, if the canvas ends with a whole
patch.
"""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from regionclip_jax.ops.normalization import real_pixels

# "bicubic_antialiased" is the rule of open_clip and timm, "bicubic" that of Hugging Face and
# CLIPSelf, whose cubic kernel also has other weights. OpenAI's code resizes no positions.
PositionResize = Literal["bicubic_antialiased", "bicubic"]
# Arguments of ``jax.image``: method, antialias.
_RESIZING = {"bicubic_antialiased": ("bicubic", True), "bicubic": ("bicubic-pytorch", False)}


class PatchTowerConfig:
    """Properties of ``models.towers.ImageTowerConfig`` for towers of patches."""

    # Side of a patch in pixels.
    patch_size: int

    crop_channels: ClassVar[None] = None
    has_batch_norms: ClassVar[bool] = False

    @property
    def stride(self) -> int:
        return self.patch_size

    def grid_size(self, resolution: int) -> int:
        return resolution // self.patch_size

    def crop_size(self, resolution: int) -> int:
        """Return 1: a region is one RoIAligned average over the token grid."""
        return 1


def cells_and_mask(
    sizes: Int[Array, "B 2"] | None, patch_size: int, height: int, width: int
) -> tuple[Int[Array, "B 2"] | None, Bool[Array, "B 1 T"] | None]:
    """Return the (height, width) of each image's patches, and the tokens to attend to.

    Args:
        sizes: (height, width) of each image in pixels; None gives None twice, for all patches.
        height, width: of the canvas in patches. The class token comes before them.
    """
    if sizes is None:
        return None, None
    cells = -(-sizes // patch_size)
    seen = real_pixels(cells, height, width).reshape(-1, height * width)
    # The class token is always real.
    return cells, jnp.pad(seen, ((0, 0), (1, 0)), constant_values=True)[:, None]


def chosen_maps(
    inputs: list[Float[Array, "B T channels"]],
    last: Float[Array, "B patches channels"],
    blocks: tuple[int, ...],
    shape: tuple[int, int, int, int],
) -> list[Float[Array, "B h w channels"]]:
    """Return the patches' outputs of chosen blocks as maps.

    Args:
        inputs: of every block, the class token first.
        last: patches after the last block without its attention.
        blocks: numbers of blocks from 0.
        shape: of a map.
    """
    outputs = [*(tokens[:, 1:] for tokens in inputs[1:]), last]
    return [outputs[number].reshape(shape) for number in blocks]


def resized_positions(
    table: Float[Array, "N channels"],
    side: int,
    height: int,
    width: int,
    cells: Int[Array, "B 2"] | None,
    rule: PositionResize,
) -> Float[Array, "#B T channels"]:
    """Resize positional embeddings to ``height x width`` patches; the class token's row is kept.

    Args:
        table: of the class token, then of ``side x side`` patches.
        cells: (height, width) of each image's patches, over which the grid is resized; rows
            beyond them are unused. None resizes the grid over all patches.
    """
    if cells is None and (height, width) == (side, side):
        return table[None]
    channels = table.shape[1]
    rows = resized_grid(table[1:].reshape(side, side, channels), height, width, cells, rule)
    first = jnp.broadcast_to(table[:1], (len(rows), 1, channels))
    return jnp.concatenate([first, rows], 1)


def resized_grid(
    grid: Float[Array, "n n channels"],
    height: int,
    width: int,
    cells: Int[Array, "B 2"] | None,
    rule: PositionResize,
) -> Float[Array, "#B T channels"]:
    """Resize the positional embeddings of patches alone, as ``resized_positions``."""
    shape = (height, width, grid.shape[2])
    method, antialias = _RESIZING[rule]
    if cells is None:
        rows = jax.image.resize(grid, shape, method, antialias)[None]
    else:

        def spread(scale):
            return jax.image.scale_and_translate(
                grid, shape, (0, 1), scale, jnp.zeros(2), method, antialias=antialias
            )

        # A masked row has no patches.
        rows = jax.vmap(spread)(jnp.maximum(cells, 1) / grid.shape[0])
    return rows.reshape(-1, height * width, grid.shape[2])
