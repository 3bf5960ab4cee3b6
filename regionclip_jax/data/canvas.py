"""Pictures of any size on canvases of few sizes, so that the device compiles few programs.

A canvas is ``(height, width)``; a picture lies in its top left corner, the rest is zero.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

Size = tuple[int, int]


def smallest_canvas(canvas_sizes: Sequence[Size], height: int, width: int) -> Size | None:
    """The canvas of the smallest area that holds ``height`` x ``width``, or None."""
    fitting = [size for size in canvas_sizes if size[0] >= height and size[1] >= width]
    return min(fitting, key=lambda size: (size[0] * size[1], size), default=None)


def place_on_canvas(image: UInt8[np.ndarray, "h w 3"], canvas: UInt8[np.ndarray, "H W 3"]) -> None:
    """Copies a picture into the top left corner of a canvas, which must be large enough."""
    canvas[: image.shape[0], : image.shape[1]] = image


def check_canvases(
    canvas_sizes: Sequence[Size],
    *,
    short_side: int | None,
    max_long_side: int | None,
    images_per_process: int,
    process_count: int,
) -> None:
    """Refuses, before the first record, canvases that the resize limits would overflow.

    Args:
        canvas_sizes: the static tuple a batch chooses from.
        short_side, max_long_side: the limits of the resize; None: sizes are not known beforehand.
        images_per_process: a batch with an upright and a lying picture needs a canvas for both.
        process_count: processes choose alone, so several of them may have one canvas only.

    Raises:
        ValueError: no canvas, a canvas that cannot hold what the limits allow, or several canvases
            with several processes.
    """
    if not canvas_sizes or min(min(size) for size in canvas_sizes) < 1:
        raise ValueError(f"canvas_sizes must hold positive (height, width), found {canvas_sizes}")
    if process_count > 1 and len(canvas_sizes) > 1:
        raise ValueError(
            f"canvas_sizes has {len(canvas_sizes)} sizes for {process_count} processes: each would "
            "choose by its own pictures and the shapes would differ; give one size"
        )
    if short_side is None or max_long_side is None:
        return
    long = max(short_side, max_long_side)
    needed = [(long, long)] if images_per_process > 1 else [(short_side, long), (long, short_side)]
    for height, width in needed:
        if smallest_canvas(canvas_sizes, height, width) is None:
            raise ValueError(
                f"no canvas of {tuple(canvas_sizes)} holds {height} x {width} (height x width), "
                f"which short_side {short_side} and max_long_side {max_long_side} allow in a batch "
                f"of {images_per_process}: add a canvas of at least that size"
            )
