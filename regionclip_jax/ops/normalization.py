"""Normalisation of pixels for image towers and localizers, and of embeddings.

Source: docs/reference/towers.md#pixel-normalisation, docs/reference/localizers.md#input.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from regionclip_jax.structures import Preprocessing

# Blue, green, red, for values from 0 to 255.
DETECTRON_MEAN = (103.53, 116.28, 123.675)


def real_pixels(sizes: Int[Array, "B 2"], height: int, width: int) -> Bool[Array, "B H W"]:
    """Return True for a canvas's image pixels, False for the padding right of and below them."""
    rows = jnp.arange(height)[None, :, None] < sizes[:, 0, None, None]
    columns = jnp.arange(width)[None, None, :] < sizes[:, 1, None, None]
    return rows & columns


def normalize_images(
    images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"], preprocessing: Preprocessing
) -> Float[Array, "B H W 3"]:
    """Normalise RGB canvases for a tower; padding is 0 after normalisation, as in the reference."""
    pixels = normalize_crops(images.astype(jnp.float32), preprocessing)
    return jnp.where(real_pixels(sizes, *images.shape[1:3])[..., None], pixels, 0.0)


def normalize_crops(
    crops: Float[Array, "*crops P Q 3"], preprocessing: Preprocessing
) -> Float[Array, "*crops P Q 3"]:
    """Normalise RGB values from 0 to 255 for a tower, for images without padding."""
    mean = jnp.asarray(preprocessing.mean, jnp.float32)
    std = jnp.asarray(preprocessing.std, jnp.float32)
    return (crops / 255.0 - mean) / std


def normalize_for_detectron(
    images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"]
) -> Float[Array, "B H W 3"]:
    """Convert RGB canvases to BGR minus the mean, without division; padding is 0 after it."""
    pixels = images[..., ::-1].astype(jnp.float32) - jnp.asarray(DETECTRON_MEAN, jnp.float32)
    return jnp.where(real_pixels(sizes, *images.shape[1:3])[..., None], pixels, 0.0)


def unit_length(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Divide rows by their L2 norm, in fp32, with a finite gradient at zero.

    The reference divides without an epsilon (docs/reference/pretraining.md#unit-length). The
    epsilon here is far below any norm of a model. It keeps rows of zeros and their gradients
    finite.
    """
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
