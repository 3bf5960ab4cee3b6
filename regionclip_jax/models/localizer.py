"""The localizer: a class-agnostic region proposal network on a trunk of its own.

Source: docs/reference/localizers.md. ``LocalizerConfig`` selects one of four variants: a ResNet's
res4 (C4), a feature pyramid (FPN), the pyramid with norms and a deeper head (large-scale jitter),
the pyramid on CLIP's ResNet. The input is CLIP's canvas, normalised for the localizer's trunk.

The outputs for an image do not depend on the canvas. They are those of the image alone
(``models.convolution``), padded for a pyramid to a multiple of 32, as in the reference's
evaluation. In the reference's batches of several images the padding affects the outputs.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from regionclip_jax.models import modified_resnet
from regionclip_jax.models.convolution import Cells, Conv, after_pool
from regionclip_jax.models.detectron_resnet import DetectronResNet
from regionclip_jax.models.fpn import FPN
from regionclip_jax.models.rematerialization import RematPolicy, with_remat
from regionclip_jax.ops.anchors import cell_anchors, grid_anchors
from regionclip_jax.ops.convolution import relu
from regionclip_jax.ops.normalization import (
    normalize_for_detectron,
    normalize_images,
    real_pixels,
)
from regionclip_jax.ops.proposals import propose_from_cells
from regionclip_jax.settings import ProposalSettings
from regionclip_jax.structures import Preprocessing, Regions

ANCHOR_SIZES = (32, 64, 128, 256, 512)
ASPECT_RATIOS = (0.5, 1.0, 2.0)
# A trunk has no positional embedding, so the resolution has no effect.
_OF_CLIP = Preprocessing(resolution=224)


@dataclasses.dataclass(frozen=True)
class LocalizerConfig:
    """Sizes of a localizer. ``LocalizerConfig()`` is the reference's ResNet50-C4."""

    trunk: Literal["detectron", "clip"] = "detectron"
    # Bottlenecks of res2, res3, ...; the last stage is the C4 feature map, or the pyramid's top.
    blocks: tuple[int, ...] = (3, 4, 6)
    stem_width: int = 64
    # Channels inside and after the bottlenecks of res2.
    bottleneck_width: int = 64
    features: int = 256
    # Channels of a feature pyramid; None means one level, the trunk's last.
    pyramid_channels: int | None = None
    pyramid_norm: bool = False
    head_convs: int = 1

    @property
    def variant(self) -> str:
        """Description of the variant, for messages."""
        trunk = "CLIP's ResNet" if self.trunk == "clip" else "detectron2's ResNet"
        if self.pyramid_channels is None:
            return f"{trunk}, C4"
        return f"{trunk}, feature pyramid{' with norms' if self.pyramid_norm else ''}"

    @property
    def strides(self) -> tuple[int, ...]:
        """Canvas pixels per cell, for each level."""
        if self.pyramid_channels is None:
            return (2 ** (len(self.blocks) + 1),)
        return tuple(2 ** (level + 2) for level in range(len(self.blocks) + 1))

    @property
    def anchor_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Anchor sizes of each level: all on one level, or one on each of the pyramid's five."""
        if self.pyramid_channels is None:
            return (ANCHOR_SIZES,)
        return tuple((size,) for size in ANCHOR_SIZES)

    @property
    def canvas_divisor(self) -> int:
        """Required divisor of the canvas sides."""
        return self.strides[0 if self.pyramid_channels is None else -2]

    def padded_sizes(self, sizes: Int[Array, "B 2"]) -> Int[Array, "B 2"]:
        """Return sizes, for a pyramid rounded up to multiples of 32, as in the reference."""
        if self.pyramid_channels is None:
            return sizes
        divisor = self.strides[-2]
        return -(-sizes // divisor) * divisor

    def level_cells(self, sizes: Int[Array, "B 2"]) -> list[Int[Array, "B 2"]]:
        """Return each image's part of every level, in cells (height, width)."""
        if self.trunk == "clip" and self.pyramid_channels is None:
            # CLIP's pools drop an odd last row; detectron2's convolutions keep it.
            return [-(-sizes // 2) // (stride // 2) for stride in self.strides]
        return [-(-self.padded_sizes(sizes) // stride) for stride in self.strides]


class ClipTrunk(nn.Module):
    """The four stages of CLIP's ResNet."""

    blocks: tuple[int, ...]
    width: int
    frozen_norm: bool
    dtype: jnp.dtype
    remat: RematPolicy = "all"

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "B H W 3"], sizes: Cells = None
    ) -> list[Float[Array, "B _ _ _"]]:
        stem = with_remat(modified_resnet.Stem, self.remat)
        x = stem(self.width, self.frozen_norm, self.dtype, name="stem")(
            pixels.astype(self.dtype), sizes
        )
        cells, outputs = modified_resnet.stem_cells(sizes), []
        for index, num_blocks in enumerate(self.blocks):
            stride = 1 if index == 0 else 2
            x = modified_resnet.Stage(
                self.width * 2**index,
                num_blocks,
                stride,
                self.frozen_norm,
                self.dtype,
                self.remat,
                name=f"layer{index + 1}",
            )(x, cells)
            cells = after_pool(cells) if stride == 2 else cells
            outputs.append(x)
        return outputs


class RPNHead(nn.Module):
    """Head shared by all levels: 3x3 convolutions, then a logit and four deltas for each anchor.

    Source: docs/reference/localizers.md#head.
    """

    num_anchors: int
    num_convs: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "B h w c"], cells: Cells = None
    ) -> tuple[Float[Array, "B anchors"], Float[Array, "B anchors 4"]]:
        """Return logits and deltas in the order of ``ops.anchors``: row, column, cell's anchor."""
        num, channels = features.shape[0], features.shape[-1]
        # The first deltas are near zero. From the larger kernels of the other convolutions, the
        # deltas are several times an anchor's side, and are not learned in a short training.
        init = nn.initializers.normal(0.01)
        x = features
        for index in range(self.num_convs):
            x = relu(Conv(channels, 3, 1, self.dtype, True, init, name=f"conv{index}")(x, cells))
        logits = Conv(self.num_anchors, 1, 1, self.dtype, True, init, name="objectness")(x)
        deltas = Conv(4 * self.num_anchors, 1, 1, self.dtype, True, init, name="deltas")(x)
        return (
            logits.reshape(num, -1).astype(jnp.float32),
            deltas.reshape(num, -1, 4).astype(jnp.float32),
        )


class Localizer(nn.Module):
    """Region proposal network: objectness logits and box deltas of every anchor of every level.

    ``frozen_norm=False`` gives live batch norms, to train from scratch. ``remat``
    applies to the trunk.
    """

    config: LocalizerConfig
    dtype: jnp.dtype = jnp.float32
    frozen_norm: bool = True
    remat: RematPolicy = "all"

    def setup(self):
        c = self.config
        if c.trunk == "clip":
            self.trunk = ClipTrunk(c.blocks, c.stem_width, self.frozen_norm, self.dtype, self.remat)
        else:
            self.trunk = DetectronResNet(
                c.blocks,
                c.stem_width,
                c.bottleneck_width,
                c.features,
                self.frozen_norm,
                self.dtype,
                self.remat,
            )
        if c.pyramid_channels is not None:
            self.pyramid = FPN(c.pyramid_channels, c.pyramid_norm, self.frozen_norm, self.dtype)
        num_anchors = len(c.anchor_sizes[0]) * len(ASPECT_RATIOS)
        self.head = RPNHead(num_anchors, c.head_convs, self.dtype)

    def feature_levels(
        self, images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"]
    ) -> list[Float[Array, "B _ _ _"]]:
        """Return the inputs of the head: res4, or p2 to p6."""
        if self.config.trunk == "clip":
            pixels = normalize_images(images, sizes, _OF_CLIP)
        else:
            pixels = normalize_for_detectron(images, sizes)
        stages = self.trunk(pixels, self.config.padded_sizes(sizes))
        if self.config.pyramid_channels is None:
            return stages[-1:]
        return self.pyramid(stages, self.config.level_cells(sizes)[:-1])

    def predict(
        self, features: Float[Array, "B h w c"], cells: Int[Array, "B 2"]
    ) -> tuple[Float[Array, "B anchors"], Float[Array, "B anchors 4"]]:
        """Return logits and deltas of one level, as ``RPNHead``; ``cells`` from ``level_cells``."""
        return self.head(features, cells)

    def __call__(
        self, images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"]
    ) -> tuple[list[Float[Array, "B _"]], list[Float[Array, "B _ 4"]]]:
        """Return fp32 logits (before any sigmoid) and deltas per level, for all canvas cells.

        Args:
            images: canvases whose sides are multiples of ``config.canvas_divisor``.
            sizes: (height, width) of each image's real pixels.

        Raises:
            ValueError: with a pyramid, a side of the canvas is not a multiple of 32.
        """
        levels = zip(
            self.feature_levels(images, sizes), self.config.level_cells(sizes), strict=True
        )
        outputs = [self.predict(features, cells) for features, cells in levels]
        return [logits for logits, _ in outputs], [deltas for _, deltas in outputs]


def level_anchors(
    config: LocalizerConfig, height: int, width: int
) -> list[Float[np.ndarray, "_ 4"]]:
    """Return the anchors of every level of a canvas, in the order of a localizer's outputs."""
    return [
        grid_anchors(-(-height // stride), -(-width // stride), stride, _cell(sizes))
        for stride, sizes in zip(config.strides, config.anchor_sizes, strict=True)
    ]


def real_anchors(
    config: LocalizerConfig, sizes: Int[Array, "B 2"], height: int, width: int
) -> list[Bool[Array, "B _"]]:
    """Return True for the anchors of the image's own cells, False for those of the padding."""
    levels = []
    for cells, stride, anchor_sizes in zip(
        config.level_cells(sizes), config.strides, config.anchor_sizes, strict=True
    ):
        real = real_pixels(cells, -(-height // stride), -(-width // stride))
        levels.append(real.reshape(len(sizes), -1).repeat(len(_cell(anchor_sizes)), axis=1))
    return levels


def _cell(sizes: tuple[int, ...]) -> Float[np.ndarray, "A 4"]:
    return cell_anchors(sizes, ASPECT_RATIOS)


def propose(
    localizer: Localizer,
    variables: dict,
    images: UInt8[Array, "B H W 3"],
    sizes: Int[Array, "B 2"],
    proposals: ProposalSettings,
) -> Regions:
    """Propose the best distinct boxes of each image, by descending objectness logit.

    Cells of the canvas outside the image propose nothing. The anchors are the reference's for the
    image alone (for a pyramid padded to a multiple of 32). In the reference's batches the padding
    proposes too, as a side effect of batching.

    Args:
        images: canvases of any size; enlarged here to a multiple of 16 (C4) or 32 (pyramid).
        sizes: (height, width) of each image's real pixels.
        proposals: R = ``num_proposals``, and the selection's settings.

    Raises:
        ValueError: as ``ops.proposals.select_proposals``.
    """
    config = localizer.config
    bottom, right = (-side % config.canvas_divisor for side in images.shape[1:3])
    images = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
    height, width = images.shape[1:3]
    logits, deltas = localizer.apply(variables, images, sizes)
    real = real_anchors(config, sizes, height, width)
    anchors = level_anchors(config, height, width)
    return propose_from_cells(logits, deltas, anchors, real, sizes, proposals)


def init_localizer(config: LocalizerConfig, key: PRNGKeyArray) -> dict:
    """Initialise ``{"params", "batch_stats"}``; under ``jax.eval_shape`` give shapes only."""
    images, sizes = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64)
    return dict(Localizer(config).init(key, images, sizes))
