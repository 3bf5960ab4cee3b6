"""Resize, crop and flip an image with its boxes and masks."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_RESAMPLING = {
    "bicubic_truncate": Image.Resampling.BICUBIC,
    "bicubic_uncapped": Image.Resampling.BICUBIC,
    "bilinear_round": Image.Resampling.BILINEAR,
}


def resized_size(
    height: int, width: int, short: int, max_long: int, method: str
) -> tuple[int, int]:
    """Return ``(height, width)`` with the short side ``short`` and the long one up to ``max_long``.

    ``bicubic_truncate`` is the rule of pretraining (docs/reference/pretraining_data.md#images):
    fractions are truncated. ``bilinear_round`` is the rule of detection
    (docs/reference/detection.md#resizing): rounded half up. Neither makes a side 0, unlike the
    reference for an image of 1 x 5000. ``bicubic_uncapped`` is ``bicubic_truncate`` with the
    reference's bug: an image with the right short side keeps its size, even if its long side
    exceeds ``max_long``.

    Raises:
        ValueError: an unknown method.
    """
    if method not in _RESAMPLING:
        raise ValueError(f"unknown resize method {method!r}: choose from {', '.join(_RESAMPLING)}")
    low, high = min(height, width), max(height, width)
    if method == "bilinear_round":
        scale = short / low
        exact_low, exact_high = float(short), scale * high
        if exact_high > max_long:
            shrink = max_long / exact_high
            exact_low, exact_high = exact_low * shrink, exact_high * shrink
        new_low, new_high = int(exact_low + 0.5), int(exact_high + 0.5)
    else:
        if low == short and (high <= max_long or method == "bicubic_uncapped"):
            return height, width
        new_low, new_high = short, int(short * high / low)
        if new_high > max_long:
            new_low, new_high = int(max_long * short / new_high), max_long
    new_low = max(new_low, 1)
    return (new_low, new_high) if height <= width else (new_high, new_low)


def resize_short_side(
    image: UInt8[np.ndarray, "h w 3"], short: int, max_long: int, method: str
) -> UInt8[np.ndarray, "H W 3"]:
    """Resize an image with Pillow's antialiasing filters.

    Args:
        short, max_long: in pixels; the sizes follow :func:`resized_size`.
        method: a method of :func:`resized_size`.

    Raises:
        ValueError: an unknown method.
    """
    height, width = resized_size(*image.shape[:2], short, max_long, method)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), _RESAMPLING[method]))


def jitter_image(
    image: UInt8[np.ndarray, "h w 3"],
    canvas: tuple[int, int],
    factors: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]]:
    """Apply large-scale jitter: resize an image by a random scale and crop it to the canvas.

    As in detectron2, the image is resized to fit a random factor of the canvas and keeps its
    aspect ratio. A random crop of the canvas' size is taken from a larger image. (detectron2 pads
    a smaller image with gray; here a model never sees the padding.)

    Args:
        canvas: (height, width).
        factors: smallest and largest factor, such as (0.1, 2.0).

    Returns:
        The image, the resize factors (y, x), and the offset of the crop (y, x) in pixels of the
        resized image.
    """
    factor = rng.uniform(*factors)
    height, width = image.shape[:2]
    scale = min(factor * canvas[0] / height, factor * canvas[1] / width)
    new = [max(1, int(side * scale + 0.5)) for side in (height, width)]
    resized = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR))
    start = [int(rng.integers(max(0, n - c) + 1)) for n, c in zip(new, canvas, strict=True)]
    part = resized[start[0] : start[0] + canvas[0], start[1] : start[1] + canvas[1]]
    scales = np.divide(new, (height, width), dtype=np.float32)
    return part, scales, np.array(start, np.float32)


def flip_image(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Mirror an image horizontally."""
    flipped = np.empty_like(image)
    for channel in range(3):  # several times faster than copying image[:, ::-1] at once
        flipped[..., channel] = image[:, ::-1, channel]
    return flipped


def flip_boxes(boxes: Float[np.ndarray, "G 4"], width: int) -> Float[np.ndarray, "G 4"]:
    """Return the boxes of an image ``width`` pixels wide after :func:`flip_image`."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], -1).astype(boxes.dtype)


def crop_masks(
    masks: UInt8[np.ndarray, "G P P"],
    boxes: Float[np.ndarray, "G 4"],
    parts: Float[np.ndarray, "G 4"],
) -> UInt8[np.ndarray, "G P P"]:
    """Resample masks over ``boxes`` to masks over ``parts`` of the boxes (nearest cell)."""
    size = masks.shape[-1]
    middles = (np.arange(size) + 0.5) / size
    found = np.zeros_like(masks)
    for row, (box, part) in enumerate(zip(boxes, parts, strict=True)):
        columns, lines = (
            ((part[i] + middles * (part[i + 2] - part[i]) - box[i]) / (box[i + 2] - box[i]) * size)
            .astype(int)
            .clip(0, size - 1)
            for i in (0, 1)
        )
        found[row] = masks[row][np.ix_(lines, columns)]
    return found
