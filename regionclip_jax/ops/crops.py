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
    height, width = images.shape[1:3]
    limits = sizes[:, None, :].astype(jnp.float32)
    # Both (y, x).
    low = jnp.floor(jnp.clip(boxes[..., 1::-1], 0.0, limits))
    high = jnp.ceil(jnp.clip(boxes[..., 3:1:-1], 0.0, limits))
    rows = _resize_matrix(low[..., 0], high[..., 0], height, output_size)
    columns = _resize_matrix(low[..., 1], high[..., 1], width, output_size)
    pixels = images.astype(jnp.float32)
    narrow = jnp.einsum("brqw,bhwc->brqhc", columns, pixels)
    return jnp.clip(jnp.einsum("brph,brqhc->brpqc", rows, narrow), 0.0, 255.0)


def _resize_matrix(low, high, length: int, num_outputs: int) -> Float[Array, "B R P length"]:
    """Weights of the pixels of an axis in every output; zero outside ``low`` to ``high``."""
    low, high = low[..., None, None], high[..., None, None]
    scale = (high - low) / num_outputs
    centers = low + (jnp.arange(num_outputs, dtype=jnp.float32)[:, None] + 0.5) * scale
    pixels = jnp.arange(length, dtype=jnp.float32)
    distances = jnp.abs(pixels + 0.5 - centers) / jnp.maximum(scale, 1.0)
    weights = jnp.where((pixels >= low) & (pixels < high), _bicubic(distances), 0.0)
    totals = weights.sum(-1, keepdims=True)
    return weights / jnp.where(totals == 0, 1.0, totals)


def _bicubic(distance):
    """Keys' kernel with a = -1/2, for distances of 0 or more."""
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0.0))
