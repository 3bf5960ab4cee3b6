"""Detector on a frozen ViT: a feature pyramid from maps of its blocks, and heads of its own.

Source: F-ViT (Wu et al., CLIPSelf, ICLR 2024); docs/reference/training_detectors.md#f-vit. Four
maps at the patch stride become strides of a quarter, a half, once and twice a patch: 4, 8, 16 and
32 pixels with patches of 16, and 3.5 to 28 with patches of 14. A feature pyramid, a proposal
network, a box head and a mask head follow. The tower itself is not changed.

The outputs for an image do not depend on the canvas, if norms are frozen. Live norms, in training,
normalise by whole canvases.
"""

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from regionclip_jax.models.clip import CLIP
from regionclip_jax.models.concept_classifier import concept_logits
from regionclip_jax.models.convolution import Cells, Conv, TransposedConv, zero_outside
from regionclip_jax.models.detector_heads import MaskHead
from regionclip_jax.models.fpn import FPN
from regionclip_jax.models.frozen_batch_norm import BatchNorm, convolve_and_normalize
from regionclip_jax.models.localizer import ASPECT_RATIOS, RPNHead
from regionclip_jax.ops.anchors import cell_anchors, grid_anchors
from regionclip_jax.ops.convolution import relu
from regionclip_jax.ops.normalization import normalize_images, real_pixels
from regionclip_jax.ops.proposals import propose_from_cells
from regionclip_jax.ops.roi_align_levels import roi_align_levels
from regionclip_jax.settings import ProposalSettings
from regionclip_jax.structures import ImageFeatures, Preprocessing, Regions

# The colours of ImageNet, which F-ViT has in place of CLIP's; the resolution has no effect here.
_IMAGENET = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Strides of the levels, in patches. Boxes are cropped from all levels but the last.
_PATCHES_PER_CELL = (0.25, 0.5, 1, 2, 4)
# The canvas is enlarged to whole cells of the coarsest stage.
_PATCHES_PER_BLOCK = 2
# Side of a level's anchors, in its cells.
_ANCHOR_CELLS = 8
_RPN_CONVS, _BOX_CONVS, _MASK_CONVS = 2, 4, 4
BOX_CELLS, MASK_CELLS = 7, 14
# Name of the heads among the parameters of a detector.
PYRAMID_HEADS = "pyramid_heads"


@dataclasses.dataclass(frozen=True)
class PyramidConfig:
    """Sizes of the heads on a pyramid; a heads' card records them."""

    # Four blocks of the tower, from 0, whose outputs become the stages from fine to coarse.
    from_blocks: tuple[int, int, int, int]
    # Channels of the tower.
    width: int
    # Channels of the pyramid's levels and of the heads' convolutions.
    channels: int = 256


@flax.struct.dataclass
class Pyramid:
    """Levels of a batch, from fine to coarse, with each image's part of them in cells."""

    levels: list[Float[Array, "B _ _ c"]]
    cells: list[Int[Array, "B 2"]]
    # Canvas pixels per cell.
    strides: tuple[float, ...] = flax.struct.field(pytree_node=False)


class Neck(nn.Module):
    """Four maps of one stride to strides of a quarter, a half, once and twice a patch."""

    width: int
    frozen_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, maps: list[Float[Array, "B h w width"]], cells: Int[Array, "B 2"]
    ) -> list[Float[Array, "B _ _ width"]]:
        first, second, third, fourth = (zero_outside(x.astype(self.dtype), cells) for x in maps)
        deconv = functools.partial(TransposedConv, self.width, self.dtype)
        x = BatchNorm(self.width, self.frozen_norm, name="up4_norm")(deconv(name="up4_0")(first))
        x = deconv(name="up4_1")(nn.gelu(x, approximate=False))
        return [x, deconv(name="up2")(second), third, _max_pool(fourth, cells)]


def _max_pool(x: Float[Array, "B h w c"], cells: Int[Array, "B 2"]) -> Float[Array, "B _ _ c"]:
    """Return the largest of each 2x2 cells, of an image's own cells alone."""
    real = real_pixels(cells, x.shape[1], x.shape[2])[..., None]
    x = jnp.where(real, x, -jnp.inf)
    num, height, width, channels = x.shape
    x = x.reshape(num, height // 2, 2, width // 2, 2, channels).max((2, 4))
    return jnp.where(jnp.isfinite(x), x, 0.0)


class ConvStack(nn.Module):
    """3x3 convolutions of regions' maps, each with a batch norm and a ReLU."""

    channels: int
    count: int
    frozen_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N h w c"]) -> Float[Array, "N h w c"]:
        x = x.astype(self.dtype)
        for index in range(self.count):
            conv = Conv(self.channels, 3, 1, self.dtype, name=f"conv{index}")
            norm = BatchNorm(self.channels, self.frozen_norm, name=f"norm{index}")
            x = relu(convolve_and_normalize(conv, norm, x))
        return x


class RegionHead(nn.Module):
    """Embedding and box deltas of a region.

    Convolutions and two dense layers are shared, then each output has one of its own. The dense
    layers have the width of the embedding, which has no negative numbers.
    """

    embed_dim: int
    channels: int
    frozen_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, crops: Float[Array, "N h w c"]
    ) -> tuple[Float[Array, "N D"], Float[Array, "N 4"]]:
        """Return embeddings, not normalised, and deltas in units of ``BOX_HEAD_WEIGHTS``, fp32."""
        convs = ConvStack(self.channels, _BOX_CONVS, self.frozen_norm, self.dtype, name="convs")
        x = convs(crops).reshape(len(crops), -1)
        dense = functools.partial(nn.Dense, self.embed_dim, dtype=self.dtype)
        for index in range(2):
            x = relu(dense(name=f"fc{index}")(x))
        embeddings = relu(dense(name="embedding")(x))
        x = relu(dense(name="delta_fc")(x))
        init = nn.initializers.normal(0.001)
        deltas = nn.Dense(4, kernel_init=init, name="deltas")(x.astype(jnp.float32))
        return embeddings.astype(jnp.float32), deltas


class PyramidHeads(nn.Module):
    """Neck, feature pyramid, proposal network, box head and, if wanted, mask head.

    Attributes:
        frozen_norm: False gives live batch norms, for training.
    """

    config: PyramidConfig
    embed_dim: int
    with_masks: bool
    frozen_norm: bool = True
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        self.neck = Neck(c.width, self.frozen_norm, self.dtype)
        self.pyramid = FPN(c.channels, True, self.frozen_norm, self.dtype)
        self.rpn = RPNHead(len(ASPECT_RATIOS), _RPN_CONVS, self.dtype)
        self.region_head = RegionHead(self.embed_dim, c.channels, self.frozen_norm, self.dtype)
        # The text embedding of the background; it replaces its zeros before training.
        self.background = self.param(
            "background_embedding", nn.initializers.zeros, (self.embed_dim,)
        )
        self.logit_factor = self.param("logit_factor", nn.initializers.ones, ())
        if self.with_masks:
            self.mask_convs = ConvStack(c.channels, _MASK_CONVS, self.frozen_norm, self.dtype)
            self.mask_head = MaskHead(c.channels, self.dtype)

    def levels(
        self, maps: list[Float[Array, "B h w width"]], cells: Int[Array, "B 2"]
    ) -> list[Float[Array, "B _ _ c"]]:
        """Return the five levels of the pyramid from the maps of four blocks.

        Args:
            maps: h and w are even.
            cells: (height, width) of each image's patches.
        """
        return self.pyramid(self.neck(maps, cells), _level_cells(cells)[:-1])

    def predict(
        self, level: Float[Array, "B h w c"], cells: Cells
    ) -> tuple[Float[Array, "B anchors"], Float[Array, "B anchors 4"]]:
        """Return objectness logits and deltas of a level's anchors, as ``RPNHead``."""
        return self.rpn(level, cells)

    def embed(
        self, crops: Float[Array, "N h w c"]
    ) -> tuple[Float[Array, "N D"], Float[Array, "N 4"]]:
        """Return embeddings and deltas of crops of ``BOX_CELLS``, as ``RegionHead``."""
        return self.region_head(crops)

    def cosines(
        self, embeddings: Float[Array, "*regions D"], classes: Float[Array, "C D"]
    ) -> Float[Array, "*regions C+1"]:
        """Return the cosines of any embeddings of regions with the classes and the background."""
        classes = jnp.concatenate([classes, self.background[None]])
        return concept_logits(embeddings, classes, 1.0)

    def logits(
        self, embeddings: Float[Array, "*regions D"], classes: Float[Array, "C D"]
    ) -> Float[Array, "*regions C+1"]:
        """Return the cosines of embeddings of ``embed``, times the learned factor."""
        return self.cosines(embeddings, classes) * self.logit_factor

    def draw_masks(self, crops: Float[Array, "N h w c"]) -> Float[Array, "N 2*h 2*w"]:
        """Return logits of object masks from crops of ``MASK_CELLS``; only with masks."""
        return self.mask_head(self.mask_convs(crops))

    def __call__(self, maps, cells):
        """Apply every part, to initialise its parameters."""
        levels = self.levels(maps, cells)
        self.predict(levels[0], None)
        crops = jnp.zeros((1, BOX_CELLS, BOX_CELLS, self.config.channels))
        embeddings, _ = self.embed(crops)
        if self.with_masks:
            self.draw_masks(crops)
        return self.logits(embeddings, jnp.zeros((1, self.embed_dim)))


def init_pyramid_heads(heads: PyramidHeads, key: jax.Array) -> dict:
    """Initialise ``{"params", "batch_stats"}``; under ``jax.eval_shape`` give shapes only."""
    maps = [jnp.zeros((1, 4, 4, heads.config.width))] * 4
    return dict(heads.init(key, maps, jnp.full((1, 2), 4)))


def _level_cells(cells: Int[Array, "B 2"]) -> list[Int[Array, "B 2"]]:
    return [4 * cells, 2 * cells, cells, -(-cells // 2), -(-cells // 4)]


def tower_features(
    model: CLIP,
    variables: dict,
    images: UInt8[Array, "B H W 3"],
    sizes: Int[Array, "B 2"],
    blocks: tuple[int, ...],
) -> tuple[ImageFeatures, list[Float[Array, "B h w width"]]]:
    """Return the features of images and the maps of blocks, without a gradient.

    Args:
        images: canvases of any size; enlarged here to an even number of patches.
        sizes: (height, width) of each image's real pixels.
    """
    divisor = _PATCHES_PER_BLOCK * model.stride
    bottom, right = (-side % divisor for side in images.shape[1:3])
    images = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
    pixels = normalize_images(images, sizes, _IMAGENET)
    return jax.lax.stop_gradient(
        model.apply(variables, pixels, sizes, blocks, method=model.features_and_blocks)
    )


def as_pyramid(
    levels: list[Float[Array, "B _ _ c"]], cells: Int[Array, "B 2"], patch_size: int
) -> Pyramid:
    """Return the levels of ``PyramidHeads.levels`` with their geometry.

    Args:
        cells: (height, width) of each image's patches.
        patch_size: side of a patch in canvas pixels.
    """
    strides = tuple(patch_size * patches for patches in _PATCHES_PER_CELL)
    return Pyramid(levels, _level_cells(cells), strides)


def pyramid_anchors(
    pyramid: Pyramid,
) -> tuple[list[Float[np.ndarray, "_ 4"]], list[Bool[Array, "B _"]]]:
    """Return the anchors of every level, and True for those of each image's own cells."""
    anchors, real = [], []
    for level, cells, stride in zip(pyramid.levels, pyramid.cells, pyramid.strides, strict=True):
        height, width = level.shape[1:3]
        own = cell_anchors((_ANCHOR_CELLS * stride,), ASPECT_RATIOS)
        anchors.append(grid_anchors(height, width, stride, own))
        exists = real_pixels(cells, height, width).reshape(len(cells), -1)
        real.append(exists.repeat(len(own), axis=1))
    return anchors, real


def propose_from_pyramid(
    pyramid: Pyramid,
    logits: list[Float[Array, "B _"]],
    deltas: list[Float[Array, "B _ 4"]],
    sizes: Int[Array, "B 2"],
    proposals: ProposalSettings,
) -> Regions:
    """Return the best distinct boxes of each image, by descending logit; no gradient flows back."""
    anchors, real = pyramid_anchors(pyramid)
    return propose_from_cells(logits, deltas, anchors, real, sizes, proposals)


def crop_from_pyramid(
    pyramid: Pyramid, boxes: Float[Array, "B R 4"], side: int, implementation: str
) -> Float[Array, "B R P P c"]:
    """Crop boxes (canvas pixels) to ``side`` cells from the levels of their sizes.

    Args:
        implementation: as in ``ops.roi_align``.
    """
    return roi_align_levels(
        pyramid.levels[:-1],
        boxes,
        side,
        pyramid.strides[:-1],
        extents=pyramid.cells[:-1],
        implementation=implementation,
    )
