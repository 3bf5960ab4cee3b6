"""Training samples of detection records: resize or jitter, mirror, and transform the boxes."""

import dataclasses

import numpy as np

from regionclip_jax.data.loading.buckets import CanvasPlan, Size, require_canvas
from regionclip_jax.data.loading.decoding import decode_image
from regionclip_jax.data.loading.examples import DetectionExample, Shard, Skipped
from regionclip_jax.data.loading.order import EpochOrder
from regionclip_jax.data.loading.transforms import (
    crop_masks,
    flip_boxes,
    flip_image,
    jitter_image,
    resize_short_side,
    scale_boxes,
)
from regionclip_jax.data.sources.records import DetectionRecord, RecordError, Source

# A box with a side of at most this is dropped: docs/reference/training_detectors.md#annotations.
_SHORTEST_SIDE = 1e-5


@dataclasses.dataclass(frozen=True)
class DetectionAugmentation:
    """Augmentation of an image and its boxes for each sample.

    Args:
        short_sides: one is drawn for each sample, in pixels; None keeps the image's size.
        max_long_side: in pixels.
        jitter: smallest and largest scale relative to the canvas; replaces ``short_sides``
            (``transforms.jitter_image``).
        resize_method: see ``transforms.resized_size``.
        canvas_sizes: available canvases; jitter uses the first.
        flip_probability: probability of a mirrored image.
    """

    short_sides: tuple[int, ...] | None
    max_long_side: int | None
    jitter: tuple[float, float] | None
    resize_method: str
    canvas_sizes: tuple[Size, ...]
    flip_probability: float


@dataclasses.dataclass(frozen=True)
class LoadTrainingDetection:
    """Map from local position to training example; a pure function of seed and position."""

    source: Source[DetectionRecord]
    order: EpochOrder
    plan: CanvasPlan | None
    shard: Shard
    augmentation: DetectionAugmentation
    seed: int

    def __call__(self, local: int) -> DetectionExample | Skipped:
        position = self.shard.global_position(local)
        rng = np.random.default_rng((self.seed, position, 2))
        name = repr(self.source)
        try:
            index = self.order[position]
            record = self.source[index]
            original = decode_image(record.image, source=name, key=record.key)
            example = augment(record, original, self.augmentation, rng)
            if self.plan is not None:
                require_canvas(
                    (self.plan.canvas(index),), *example.image.shape[:2], name, record.key
                )
        except RecordError as error:
            return Skipped(str(error))
        return example


def augment(
    record: DetectionRecord,
    original: np.ndarray,
    augmentation: DetectionAugmentation,
    rng: np.random.Generator,
) -> DetectionExample:
    """Return the augmented image and boxes of one sample; boxes that become empty are dropped."""
    image, offset = original, np.zeros(2)
    if augmentation.jitter is not None:
        image, scale, offset = jitter_image(
            original, augmentation.canvas_sizes[0], augmentation.jitter, rng
        )
    else:
        if augmentation.short_sides is not None:
            short = augmentation.short_sides[rng.integers(len(augmentation.short_sides))]
            image = resize_short_side(
                original, short, augmentation.max_long_side, augmentation.resize_method
            )
        scale = np.divide(image.shape[:2], original.shape[:2], dtype=np.float32)
    height, width = image.shape[:2]
    whole = scale_boxes(record.boxes, *scale.tolist()) - np.tile(offset[::-1], 2)
    whole = whole.astype(np.float32)
    boxes = whole.clip(0, np.array([width, height, width, height], np.float32))
    kept = ((boxes[:, 2:] - boxes[:, :2]) > _SHORTEST_SIDE).all(1)
    whole, boxes, classes = whole[kept], boxes[kept], record.classes[kept]
    masks = None
    if record.masks is not None:
        masks = crop_masks(record.masks[kept], whole, boxes)
    if rng.random() < augmentation.flip_probability:
        image, boxes = flip_image(image), flip_boxes(boxes, width)
        masks = None if masks is None else masks[:, :, ::-1]
    return DetectionExample(image, boxes, classes, record.image_id, scale, record.key, masks)
