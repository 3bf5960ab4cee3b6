"""Batches of static shapes; skipped records and rows past the end of a pass are masked."""

from collections.abc import Sequence

import numpy as np

from regionclip_jax.data.loading.buckets import Size, smallest_canvas
from regionclip_jax.data.loading.examples import (
    DetectionExample,
    ImageExample,
    ImageTextExample,
    Skipped,
)
from regionclip_jax.structures import DetectionBatch, ImageBatch, ImageTextBatch


class BatchError(ValueError):
    """Valid records that do not fit the static shapes of a batch: a limit must be raised."""


def batch_images(
    examples: Sequence[ImageExample | Skipped], canvas_sizes: Sequence[Size]
) -> tuple[ImageBatch, list[str]]:
    """Stack images on the smallest common canvas; returns and errors as ``batch_image_text``."""
    images, sizes, mask = _stack_images(examples, canvas_sizes)
    return ImageBatch(images=images, sizes=sizes, mask=mask), _texts(examples)


def batch_image_text(
    examples: Sequence[ImageTextExample | Skipped],
    canvas_sizes: Sequence[Size],
    context_length: int,
) -> tuple[ImageTextBatch, list[str]]:
    """Stack examples with captions of ``context_length`` tokens on the smallest common canvas.

    Returns:
        The batch (numpy) with a row for each example, and the texts of the skipped records.

    Raises:
        BatchError: each image fits a canvas, but no canvas holds all.
    """
    images, sizes, mask = _stack_images(examples, canvas_sizes)
    tokens = np.zeros((len(examples), context_length), np.int32)
    for row in np.flatnonzero(mask):
        tokens[row] = examples[row].tokens
    return ImageTextBatch(images=images, sizes=sizes, tokens=tokens, mask=mask), _texts(examples)


def batch_detection(
    examples: Sequence[DetectionExample | Skipped | None],
    canvas_sizes: Sequence[Size],
    max_boxes: int,
    mask_size: int | None = None,
) -> tuple[DetectionBatch, list[str]]:
    """Stack examples on the smallest common canvas; None is a row of padding.

    Args:
        max_boxes: G, number of box rows for each image.
        mask_size: side P of the object masks; None: the examples have none.

    Returns:
        The batch (numpy) with a row for each example, and the texts of the skipped records. A
        masked row has image id 0 and scale 1.

    Raises:
        BatchError: an image has more than ``max_boxes`` boxes (dropping some would falsify a
            metric), or no canvas holds all images.
    """
    images, sizes, mask = _stack_images(examples, canvas_sizes)
    count = len(examples)
    boxes = np.zeros((count, max_boxes, 4), np.float32)
    classes = np.zeros((count, max_boxes), np.int32)
    box_mask = np.zeros((count, max_boxes), bool)
    object_masks = None
    if mask_size is not None:
        object_masks = np.zeros((count, max_boxes, mask_size, mask_size), np.uint8)
    image_ids = np.zeros(count, np.int64)
    scales = np.ones((count, 2), np.float32)
    for row in np.flatnonzero(mask):
        example = examples[row]
        number = len(example.boxes)
        if number > max_boxes:
            raise BatchError(
                f"image {example.key} has {number} boxes, more than max_boxes {max_boxes}: "
                f"set max_boxes to at least {number}"
            )
        boxes[row, :number], classes[row, :number] = example.boxes, example.classes
        box_mask[row, :number] = True
        if object_masks is not None:
            object_masks[row, :number] = example.masks
        image_ids[row], scales[row] = example.image_id, example.scale
    batch = DetectionBatch(
        images=images,
        sizes=sizes,
        boxes=boxes,
        classes=classes,
        box_mask=box_mask,
        image_ids=image_ids,
        scales=scales,
        mask=mask,
        object_masks=object_masks,
    )
    return batch, _texts(examples)


def _stack_images(examples: Sequence, canvas_sizes: Sequence[Size]):
    """Return the images, their sizes, and the mask of real rows."""
    mask = np.array([hasattr(example, "image") for example in examples], bool)
    sizes = np.zeros((len(examples), 2), np.int32)
    for row in np.flatnonzero(mask):
        sizes[row] = examples[row].image.shape[:2]
    height, width = (int(side) for side in sizes.max(0))
    canvas = smallest_canvas(canvas_sizes, height, width)
    if canvas is None:
        raise BatchError(
            f"no canvas of {tuple(canvas_sizes)} holds all images of one batch, which reach "
            f"{height} x {width} (height x width): add a canvas of at least that size"
        )
    images = np.zeros((len(examples), *canvas, 3), np.uint8)
    for row in np.flatnonzero(mask):
        images[row, : sizes[row, 0], : sizes[row, 1]] = examples[row].image
    return images, sizes, mask


def _texts(examples: Sequence) -> list[str]:
    return [example.text for example in examples if isinstance(example, Skipped)]
