"""Padded canvases of few sizes (buckets) for images of any size, so that few programs are compiled.

A canvas is ``(height, width)``; an image lies in its top left corner, the rest is zero.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from regionclip_jax.data.loading.transforms import resized_size
from regionclip_jax.data.sources.records import RecordError

Size = tuple[int, int]


def padded_count(count: int, fewest: int) -> int:
    """Return the smallest of ``fewest``, its double, its fourfold, ... that is at least ``count``.

    Rows that are padded to such counts need few programs.
    """
    padded = fewest
    while padded < count:
        padded *= 2
    return padded


def padded_rows(
    rows: Float[np.ndarray, "N D"], fewest: int
) -> tuple[Float[np.ndarray, "P D"], Bool[np.ndarray, " P"]]:
    """Return rows padded with zeros to a ``padded_count``, and the mask of the given ones."""
    padding = padded_count(len(rows), fewest) - len(rows)
    return np.pad(rows, ((0, padding), (0, 0))), np.arange(len(rows) + padding) < len(rows)


def smallest_canvas(canvas_sizes: Sequence[Size], height: int, width: int) -> Size | None:
    """Return the smallest canvas by area that holds ``height`` x ``width``, or None."""
    fitting = [size for size in canvas_sizes if size[0] >= height and size[1] >= width]
    return min(fitting, key=lambda size: (size[0] * size[1], size), default=None)


def require_canvas(
    canvas_sizes: Sequence[Size], height: int, width: int, source: str, key: str
) -> None:
    """Raise RecordError unless one of the canvases holds an image of ``height`` x ``width``."""
    if smallest_canvas(canvas_sizes, height, width) is None:
        raise RecordError(
            source,
            key,
            f"{height} x {width} (height x width) is larger than every canvas of "
            f"{tuple(canvas_sizes)}, the ones it may have: add a larger canvas or resize, or "
            "correct the size that the annotations give",
        )


class Buckets:
    """Bucket of each image of a source by its size, without opening the images.

    Attributes:
        canvas_sizes: canvas of each bucket, by ascending ratio of width to height, so that
            neighbours are of like shape.
        numbers: bucket of each image, an index into ``canvas_sizes``.
        padding_share: padding as a share of all pixels, for batches of one bucket at the largest
            short side.

    Args:
        sizes: (height, width) of the images as decoded.
        canvas_sizes: available canvases.
        short_sides, max_long_side, resize_method: see ``transforms``; an image gets a canvas that
            holds it at each of the short sides. None keeps its size.
    """

    def __init__(
        self,
        sizes: Int[np.ndarray, "N 2"],
        canvas_sizes: Sequence[Size],
        short_sides: Sequence[int] | None,
        max_long_side: int | None,
        resize_method: str,
    ):
        self.canvas_sizes = tuple(sorted(canvas_sizes, key=lambda size: size[1] / size[0]))
        # An image that fits no canvas is skipped when it is loaded, so any canvas will do.
        largest = max(self.canvas_sizes, key=lambda size: size[0] * size[1])
        # A data set has few distinct sizes: compute each once.
        shapes, of_shape = np.unique(sizes, axis=0, return_inverse=True)
        numbers, pixels = [], []
        for shape in shapes.tolist():
            resized = [tuple(shape)]
            if short_sides is not None:
                resized = [
                    resized_size(*shape, short, max_long_side, resize_method)
                    for short in short_sides
                ]
            height, width = np.max(resized, 0).tolist()
            canvas = smallest_canvas(self.canvas_sizes, height, width) or largest
            numbers.append(self.canvas_sizes.index(canvas))
            pixels.append(height * width)
        self.numbers: Int[np.ndarray, " N"] = np.array(numbers)[of_shape]
        areas = np.prod(self.canvas_sizes, axis=1)
        self.padding_share = float(1 - np.array(pixels)[of_shape].sum() / areas[self.numbers].sum())

    def canvas(self, index: int) -> Size:
        """Return the canvas of an image."""
        return self.canvas_sizes[self.numbers[index]]

    def shared(self, numbers: Iterable[int]) -> Size | None:
        """Return the smallest canvas as large as those of all these buckets, or None."""
        height, width = np.max([self.canvas_sizes[number] for number in numbers], 0).tolist()
        return smallest_canvas(self.canvas_sizes, height, width)

    def __str__(self) -> str:
        counts = np.bincount(self.numbers, minlength=len(self.canvas_sizes))
        parts = [
            f"{count} on {height} x {width}"
            for (height, width), count in zip(self.canvas_sizes, counts, strict=True)
        ]
        return f"{', '.join(parts)}; {self.padding_share:.1%} of the pixels are padding"


def check_canvases(
    canvas_sizes: Sequence[Size],
    *,
    short_side: int | None,
    max_long_side: int | None,
    images_together: int,
    process_count: int,
    grouped: bool,
) -> None:
    """Refuse, before the first record, canvases that the resize limits would overflow.

    Args:
        canvas_sizes: available canvases.
        short_side, max_long_side: limits of the resize, in pixels; None: sizes are not known.
        images_together: images that share a canvas; it must hold portrait and landscape images.
        process_count: with several processes that choose alone, only one canvas is possible.
        grouped: batches of one bucket, whose canvas follows from the order, so that all processes
            choose the same.

    Raises:
        ValueError: no canvas, limits that exceed every canvas, or several canvases with several
            processes that choose alone.
    """
    if not canvas_sizes or min(min(size) for size in canvas_sizes) < 1:
        raise ValueError(f"canvas_sizes must hold positive (height, width), found {canvas_sizes}")
    if process_count > 1 and len(canvas_sizes) > 1 and not grouped:
        raise ValueError(
            f"canvas_sizes has {len(canvas_sizes)} sizes for {process_count} processes: each would "
            "choose by its own images and the shapes would differ; give one size, or in training "
            "group_by_canvas and a source that knows the sizes of its images"
        )
    if short_side is None or max_long_side is None:
        return
    long = max(short_side, max_long_side)
    needed = [(long, long)] if images_together > 1 else [(short_side, long), (long, short_side)]
    for height, width in needed:
        if smallest_canvas(canvas_sizes, height, width) is None:
            raise ValueError(
                f"no canvas of {tuple(canvas_sizes)} holds {height} x {width} (height x width), "
                f"which short_side {short_side} and max_long_side {max_long_side} allow in a batch "
                f"of {images_together}: add a canvas of at least that size"
            )
