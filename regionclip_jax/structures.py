"""The structures that cross between host and device.

Legend of the shapes in this package:
  B images of the global batch    H, W canvas height and width    L text tokens (77)
  G ground-truth boxes (padded)   R regions of an image           C concepts or classes
  D embedding                     K detections of an image        h, w cells of a feature map

Boxes are float32 ``(x1, y1, x2, y2)`` in pixels of the canvas unless a name says otherwise. An
image lies in the top left corner of its canvas; ``sizes`` holds the ``(height, width)`` of its real
pixels. A ``mask`` is True where a row is real; rows it marks False hold zeros.
"""

import flax.struct
from jaxtyping import Array, Bool, Float, Int, UInt8


@flax.struct.dataclass
class ImageTextBatch:
    """Pictures with one caption each, for contrastive training and region pretraining."""

    images: UInt8[Array, "B H W 3"]
    sizes: Int[Array, "B 2"]
    tokens: Int[Array, "B L"]
    mask: Bool[Array, " B"]


@flax.struct.dataclass
class DetectionBatch:
    """Pictures with ground-truth boxes. ``scales`` are canvas pixels per original pixel (y, x)."""

    images: UInt8[Array, "B H W 3"]
    sizes: Int[Array, "B 2"]
    boxes: Float[Array, "B G 4"]
    classes: Int[Array, "B G"]
    box_mask: Bool[Array, "B G"]
    image_ids: Int[Array, " B"]
    scales: Float[Array, "B 2"]
    mask: Bool[Array, " B"]


@flax.struct.dataclass
class Regions:
    """Candidate regions of each image, with objectness where a localizer gave one (else zeros)."""

    boxes: Float[Array, "B R 4"]
    scores: Float[Array, "B R"]
    mask: Bool[Array, "B R"]


@flax.struct.dataclass
class Detections:
    """The K best (box, class) pairs of each image, best first."""

    boxes: Float[Array, "B K 4"]
    scores: Float[Array, "B K"]
    classes: Int[Array, "B K"]
    mask: Bool[Array, "B K"]
