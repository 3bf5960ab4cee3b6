"""Resample masks of detections from the cells of their boxes to the pixels of images.

Source: docs/reference/detection.md#masks. A pixel belongs to a detection if its probability is at
least one half. Probabilities are interpolated linearly between cell centres, and zero outside.
"""

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco_mask

THRESHOLD = 0.5


def paste_mask(
    probabilities: Float[np.ndarray, "M M"],
    box: Float[np.ndarray, " 4"],
    height: int,
    width: int,
) -> Bool[np.ndarray, "H W"]:
    """Return the mask of the pixels that a detection covers.

    Args:
        probabilities: probability of each cell of the box.
        box: xyxy, pixels of the image; an empty one covers no pixel.
        height, width: size of the image.
    """
    pixels = np.zeros((height, width), bool)
    if not (box[2] > box[0] and box[3] > box[1]):
        return pixels
    size = len(probabilities)
    first = np.maximum(np.floor(box[:2]), 0).astype(int)
    last = np.minimum(np.ceil(box[2:]), (width, height)).astype(int)

    def weights(axis: int) -> np.ndarray:
        middles = np.arange(first[axis], last[axis]) + 0.5
        place = (middles - box[axis]) / (box[axis + 2] - box[axis]) * size - 0.5
        return np.maximum(1 - np.abs(place[:, None] - np.arange(size)), 0.0)

    values = weights(1) @ probabilities.astype(np.float64) @ weights(0).T
    pixels[first[1] : last[1], first[0] : last[0]] = values >= THRESHOLD
    return pixels


def encode_mask(pixels: Bool[np.ndarray, "H W"]) -> dict:
    """Encode a mask in COCO's compressed run-length encoding, as JSON text."""
    encoded = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}
