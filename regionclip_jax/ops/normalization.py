"""Normalisation of pixels for CLIP's towers and for localizers.

Source: docs/reference/towers.md#pixel-normalisation, docs/reference/localizers.md#input.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Blue, green, red, for values from 0 to 255.
DETECTRON_MEAN = (103.53, 116.28, 123.675)


def real_pixels(sizes: Int[Array, "B 2"], height: int, width: int) -> Bool[Array, "B H W"]:
    """Return True for a canvas's image pixels, False for the padding right of and below them."""
    rows = jnp.arange(height)[None, :, None] < sizes[:, 0, None, None]
    columns = jnp.arange(width)[None, None, :] < sizes[:, 1, None, None]
    return rows & columns


def normalize_for_clip(
    images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"]
) -> Float[Array, "B H W 3"]:
    """Normalise RGB canvases for CLIP; padding is 0 after normalisation, as in the reference."""
    pixels = normalize_crops_for_clip(images.astype(jnp.float32))
    return jnp.where(real_pixels(sizes, *images.shape[1:3])[..., None], pixels, 0.0)


def normalize_crops_for_clip(crops: Float[Array, "*crops P Q 3"]) -> Float[Array, "*crops P Q 3"]:
    """Normalise RGB values from 0 to 255 for CLIP, for images without padding."""
    mean, std = jnp.asarray(CLIP_MEAN, jnp.float32), jnp.asarray(CLIP_STD, jnp.float32)
    return (crops / 255.0 - mean) / std


def normalize_for_detectron(
    images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"]
) -> Float[Array, "B H W 3"]:
    """Convert RGB canvases to BGR minus the mean, without division; padding is 0 after it."""
    pixels = images[..., ::-1].astype(jnp.float32) - jnp.asarray(DETECTRON_MEAN, jnp.float32)
    return jnp.where(real_pixels(sizes, *images.shape[1:3])[..., None], pixels, 0.0)
