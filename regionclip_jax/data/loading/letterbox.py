"""Letterbox users' images and boxes with the loading path, in batches of few shapes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from regionclip_jax.data.loading.batching import batch_detection
from regionclip_jax.data.loading.buckets import Size, padded_count, smallest_canvas
from regionclip_jax.data.loading.decoding import AnyImage, read_any_image
from regionclip_jax.data.loading.examples import DetectionExample, ImageLoading
from regionclip_jax.ops.host_boxes import BoxFit, host_scale_boxes
from regionclip_jax.settings.fields import SIDES
from regionclip_jax.structures import DetectionBatch

_FEWEST_ROWS = 25


class Letterbox:
    """Letterbox of images: resized, on the smallest canvas.

    Args:
        short_side, max_long_side: limits of the resize, in pixels.
        resize_method: a method of ``transforms.resized_size``.

    Raises:
        ValueError: a side that no image has.
    """

    def __init__(self, short_side: int, max_long_side: int, resize_method: str):
        for name, side in (("short_side", short_side), ("max_long_side", max_long_side)):
            if side not in SIDES:
                raise ValueError(f"{name}: expected {SIDES}, found {side!r}")
        canvases = canvas_sizes(short_side, max_long_side)
        self._images = ImageLoading((short_side,), max_long_side, resize_method, canvases)

    def load(self, image: AnyImage, boxes: Float[np.ndarray, "R 4"]) -> DetectionExample:
        """Return the resized image, and its boxes in pixels of the resized image.

        Raises:
            RecordError: the file is not an image.
            ValueError: the array is not an image, or as ``check_boxes``.
            FileNotFoundError: no such file.
        """
        pixels = read_any_image(image)
        boxes = check_boxes(boxes, pixels.shape[:2])
        resized, scale = self._images.resize(pixels)
        classes = np.zeros(len(boxes), np.int32)
        return DetectionExample(resized, host_scale_boxes(boxes, scale), classes, 0, scale, "")

    def canvas(self, example: DetectionExample) -> Size:
        """Return the smallest canvas that holds the image; all images of a batch need the same."""
        return smallest_canvas(self._images.canvas_sizes, *example.image.shape[:2])

    def batch(self, examples: Sequence[DetectionExample]) -> DetectionBatch:
        """Return a batch of images of one canvas.

        Rows of boxes are padded to one of few numbers, so that few programs are compiled.
        """
        rows = padded_count(max(len(example.boxes) for example in examples), _FEWEST_ROWS)
        return batch_detection(examples, [self.canvas(examples[0])], rows)[0]


def canvas_sizes(short_side: int, max_long_side: int) -> tuple[Size, ...]:
    """Return landscape and portrait canvases, multiples of 32, for 4:3 and longer images."""
    short, middle, long = (
        -(-side // 32) * 32
        for side in (short_side, round(short_side * 4 / 3), max(short_side, max_long_side))
    )
    lying = {(short, min(middle, long)), (short, long)}
    return tuple(sorted(lying | {(width, height) for height, width in lying}))


def check_boxes(boxes, size: Size | None) -> Float[np.ndarray, "R 4"]:
    """Return boxes as float32 [R, 4].

    Args:
        boxes: xyxy in pixels of the image.
        size: (height, width) of the image; None, if it cannot be read, compares no box with it.

    Raises:
        ValueError: another shape, a box that is not finite, has no area or lies outside the image,
            or boxes that together have another format (``BoxFit``).
    """
    boxes = np.asarray(boxes, np.float32)
    if boxes.size == 0:
        return np.zeros((0, 4), np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"boxes: expected [R, 4] as x1, y1, x2, y2, found the shape {list(boxes.shape)}"
        )
    good = np.isfinite(boxes).all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"boxes: row {row} is {boxes[row].tolist()}, expected finite x1 < x2 and y1 < y2 in "
            "pixels of the image (not x, y, width, height)"
        )
    if size is None:
        return boxes
    height, width = size
    fit = BoxFit()
    inside = [fit.add(box, height, width) for box in boxes.tolist()]
    if problem := fit.problem():
        raise ValueError(
            f"boxes: {problem}; the image is {height} x {width} (height x width), and boxes are "
            "x1, y1, x2, y2"
        )
    if not all(inside):
        row = inside.index(False)
        raise ValueError(
            f"boxes: row {row} is {boxes[row].tolist()}, outside the image of {height} x {width} "
            "(height x width): expected x1, y1, x2, y2 in its pixels"
        )
    return boxes
