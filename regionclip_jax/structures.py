"""Structures that cross between host and device.

Legend of the shapes in this package:
  B images of the global batch    H, W canvas height and width    L text tokens (77)
  G ground-truth boxes (padded)   R regions of an image           C concepts or classes
  D embedding                     K detections of an image        h, w cells of a feature map

Boxes are float32 ``(x1, y1, x2, y2)`` in pixels of the canvas unless a name says otherwise. An
image lies in the top left corner of its canvas; ``sizes`` holds the ``(height, width)`` of its real
pixels. A ``mask`` is True where a row is real; rows it marks False hold zeros.
"""

import dataclasses

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

# numpy on the host, jax on the device.
AnyArray = Array | np.ndarray
# A constant of a program, or an argument of it.
Number = float | int | Float[AnyArray, ""] | np.float32


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Preparation of images for an image tower. The defaults are CLIP's and the reference's.

    Source: docs/reference/towers.md#pixel-normalisation, docs/reference/evaluation.md.
    """

    # Side of the square image of the positional embedding, in pixels.
    resolution: int
    # Mean and standard deviation of RGB values from 0 to 1.
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    # Resize method (``data.transforms.resized_size``) where no recipe names one.
    resize: str = "bilinear_round"


@flax.struct.dataclass
class ImageFeatures:
    """Features computed once per image: the map for regions and, if any, the whole embedding."""

    map: Float[AnyArray, "B h w channels"]
    # None: the embedding of a whole image is that of the region that covers it.
    whole: Float[AnyArray, "B D"] | None
    # (height, width) of each image's part of the map; None means the whole map.
    cells: Int[AnyArray, "B 2"] | None = None


@flax.struct.dataclass
class ImageBatch:
    """Images alone, for distillation."""

    images: UInt8[AnyArray, "B H W 3"]
    sizes: Int[AnyArray, "B 2"]
    mask: Bool[AnyArray, " B"]


@flax.struct.dataclass
class ImageTextBatch:
    """Images with one caption each, for contrastive training and region pretraining."""

    images: UInt8[AnyArray, "B H W 3"]
    sizes: Int[AnyArray, "B 2"]
    tokens: Int[AnyArray, "B L"]
    mask: Bool[AnyArray, " B"]


@flax.struct.dataclass
class LabelledRegions:
    """Regions of pretraining with the teacher's likeliest concept. ``keep``: the losses use it."""

    boxes: Float[AnyArray, "B R 4"]
    concepts: Int[AnyArray, "B R"]
    confidence: Float[AnyArray, "B R"]
    keep: Bool[AnyArray, "B R"]


@flax.struct.dataclass
class DetectionBatch:
    """Images with ground-truth boxes. ``scales`` are canvas pixels per original pixel (y, x).

    ``image_ids`` are those of the annotations, in 64 bits. Only the host reads them: a device holds
    their low 32 bits.
    """

    images: UInt8[AnyArray, "B H W 3"]
    sizes: Int[AnyArray, "B 2"]
    boxes: Float[AnyArray, "B G 4"]
    classes: Int[AnyArray, "B G"]
    box_mask: Bool[AnyArray, "B G"]
    image_ids: Int[AnyArray, " B"]
    scales: Float[AnyArray, "B 2"]
    mask: Bool[AnyArray, " B"]
    # Object rasters: P x P cells over each box, 1 on the object; None if not requested.
    object_masks: UInt8[AnyArray, "B G P P"] | None = None


@flax.struct.dataclass
class Regions:
    """Candidate regions of each image; ``scores`` are a localizer's objectness, or zeros."""

    boxes: Float[AnyArray, "B R 4"]
    scores: Float[AnyArray, "B R"]
    mask: Bool[AnyArray, "B R"]


@flax.struct.dataclass
class Detections:
    """The K best (box, class) pairs of each image, best first."""

    boxes: Float[AnyArray, "B K 4"]
    scores: Float[AnyArray, "B K"]
    classes: Int[AnyArray, "B K"]
    mask: Bool[AnyArray, "B K"]
    # Probability of the object, in M x M cells of each box; None without a mask head.
    object_masks: Float[AnyArray, "B K M M"] | None = None
