"""Crops of images, resized as Pillow resizes them on the host.

The alternative to RoIAlign: pixels are cropped, not features (paper figure 1). Resizing is linear
and separable, so a crop is the product of the image with one matrix for each axis.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8


def crop_and_resize(
    images: UInt8[Array, "B H W 3"],
    boxes: Float[Array, "B R 4"],
    sizes: Int[Array, "B 2"],
    output_size: int,
) -> Float[Array, "B R P P 3"]:
    """Crop boxes and resize them to squares; the aspect ratio is not kept.

    A box is clipped to its image and widened to whole pixels. Pixels outside it have no weight. The
    filter is Pillow's bicubic, which grows with the box when it shrinks it (antialias). Pillow
    rounds to bytes after each axis, in an order that depends on its version; here nothing is
    rounded.

    Args:
        images: canvases.
        boxes: xyxy canvas pixels.
        sizes: (height, width) of each image's real pixels.
        output_size: P.

    Returns:
        Values from 0 to 255. Zeros for boxes that hold no pixel.
    """
    low, high = _whole_pixels(boxes, sizes)
    first, number = jnp.zeros_like(low), jnp.full_like(low, output_size)
    return _crop(images, low, high, first, number, output_size)


def crop_and_letterbox(
    images: UInt8[Array, "B H W 3"],
    boxes: Float[Array, "B R 4"],
    sizes: Int[Array, "B 2"],
    output_size: int,
) -> Float[Array, "B R P P 3"]:
    """Crop boxes and resize them, with their aspect ratio, into the middle of black squares.

    The longer side gets ``output_size`` pixels, the other one is rounded, to 1 at least. An odd
    number of black rows or columns has one more below or on the right. All else, the arguments
    included, as in ``crop_and_resize``. Source: docs/reference/distillation.md#crops.
    """
    low, high = _whole_pixels(boxes, sizes)
    sides = high - low
    longest = jnp.maximum(sides.max(-1, keepdims=True), 1.0)
    number = jnp.maximum(jnp.round(sides * output_size / longest), 1.0)
    return _crop(images, low, high, (output_size - number) // 2, number, output_size)


def _whole_pixels(boxes, sizes) -> tuple[Float[Array, "B R 2"], Float[Array, "B R 2"]]:
    """Return the first pixels of boxes and those after the last, (y, x), within each image."""
    limits = sizes[:, None, :].astype(jnp.float32)
    low = jnp.floor(jnp.clip(boxes[..., 1::-1], 0.0, limits))
    return low, jnp.ceil(jnp.clip(boxes[..., 3:1:-1], 0.0, limits))


def _crop(images, low, high, first, number, output_size: int) -> Float[Array, "B R P P 3"]:
    """Resize the pixels from ``low`` to ``high`` to ``number`` outputs from ``first`` on."""
    pixels = images.astype(jnp.float32)
    rows, columns = (
        _resize_matrix(*(x[..., axis] for x in (low, high, first, number)), length, output_size)
        for axis, length in enumerate(images.shape[1:3])
    )
    narrow = jnp.einsum("brqw,bhwc->brqhc", columns, pixels)
    return jnp.clip(jnp.einsum("brph,brqhc->brpqc", rows, narrow), 0.0, 255.0)


def _resize_matrix(
    low, high, first, number, length: int, num_outputs: int
) -> Float[Array, "B R P length"]:
    """Weights of the pixels of an axis in every output.

    They are zero outside ``low`` to ``high``, and for all outputs but ``number`` from ``first`` on.
    """
    low, high, first, number = (x[..., None, None] for x in (low, high, first, number))
    scale = (high - low) / number
    outputs = jnp.arange(num_outputs, dtype=jnp.float32)[:, None] - first
    centers = low + (outputs + 0.5) * scale
    pixels = jnp.arange(length, dtype=jnp.float32)
    distances = jnp.abs(pixels + 0.5 - centers) / jnp.maximum(scale, 1.0)
    used = (pixels >= low) & (pixels < high) & (outputs >= 0) & (outputs < number)
    weights = jnp.where(used, _bicubic(distances), 0.0)
    totals = weights.sum(-1, keepdims=True)
    return weights / jnp.where(totals == 0, 1.0, totals)


def _bicubic(distance):
    """Keys' kernel with a = -1/2, for distances of 0 or more."""
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0.0))
