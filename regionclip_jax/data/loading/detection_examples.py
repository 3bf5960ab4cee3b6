"""Training samples of detection records: resize or jitter, mirror, and transform the boxes."""

import dataclasses

import grain
import numpy as np

from regionclip_jax.data.loading.buckets import Buckets, require_canvas
from regionclip_jax.data.loading.decoding import decode_image_of
from regionclip_jax.data.loading.examples import DetectionExample, ImageLoading, Shard, Skipped
from regionclip_jax.data.loading.transforms import (
    crop_masks,
    flip_boxes,
    flip_image,
    jitter_image,
)
from regionclip_jax.data.sources.records import DetectionRecord, RecordError, Source
from regionclip_jax.ops.host_boxes import host_scale_boxes

# A box with a side of at most this is dropped: docs/reference/training_detectors.md#annotations.
_SHORTEST_SIDE = 1e-5


@dataclasses.dataclass(frozen=True)
class DetectionAugmentation:
    """Augmentation of an image and its boxes for each sample.

    Args:
        images: resizing; one of its short sides is drawn for each sample.
        jitter: smallest and largest scale relative to the first canvas; replaces the short sides
            (``transforms.jitter_image``).
        flip_probability: probability of a mirrored image.
    """

    images: ImageLoading
    jitter: tuple[float, float] | None
    flip_probability: float


@dataclasses.dataclass(frozen=True)
class LoadTrainingDetection:
    """Map from local position to training example; a pure function of seed and position."""

    source: Source[DetectionRecord]
    order: grain.MapDataset[int]
    buckets: Buckets | None
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
            original = decode_image_of(record, name)
            example = augment(record, original, self.augmentation, rng)
            if self.buckets is not None:
                require_canvas(
                    (self.buckets.canvas(index),), *example.image.shape[:2], name, record.key
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
    if augmentation.jitter is not None:
        canvas = augmentation.images.canvas_sizes[0]
        image, scale, offset = jitter_image(original, canvas, augmentation.jitter, rng)
    else:
        image, scale = augmentation.images.resize(original, rng)
        offset = np.zeros(2)
    height, width = image.shape[:2]
    whole = host_scale_boxes(record.boxes, scale) - np.tile(offset[::-1], 2)
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
