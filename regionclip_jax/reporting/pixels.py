"""Images as writers of metrics take them."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8


def separate_images(images: Mapping[str, np.ndarray]) -> dict[str, UInt8[np.ndarray, "H W C"]]:
    """Return single images in bytes; those of a batch are named ``NAME/0``, ``NAME/1``...

    Args:
        images: [H, W, C] or [N, H, W, C], C = 1 or 3: uint8, or floats in [0, 1].

    Raises:
        ValueError: another shape.
    """
    separate = {}
    for name, value in images.items():
        pixels = np.asarray(value)
        if pixels.ndim not in (3, 4) or pixels.shape[-1] not in (1, 3):
            raise ValueError(
                f"image {name!r}: expected [H, W, C] or [N, H, W, C] with C = 1 or 3, found "
                f"shape {pixels.shape}"
            )
        if np.issubdtype(pixels.dtype, np.floating):
            pixels = np.rint(np.clip(pixels, 0.0, 1.0) * 255)
        pixels = pixels.astype(np.uint8)
        if pixels.ndim == 3:
            separate[name] = pixels
        else:
            separate |= {f"{name}/{i}": image for i, image in enumerate(pixels)}
    return separate
