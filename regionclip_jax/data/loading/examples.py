"""Examples from records: decoded, resized, flipped and tokenised, or a skipped record.

This code runs in worker processes, so it must not use the device.
"""

import dataclasses
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Float, UInt8

from regionclip_jax.data.loading.buckets import Buckets, Size, require_canvas
from regionclip_jax.data.loading.captions import choose_caption, mentions_direction
from regionclip_jax.data.loading.decoding import decode_image_of
from regionclip_jax.data.loading.transforms import flip_image, resize_short_side
from regionclip_jax.data.sources.records import (
    DetectionRecord,
    ImageTextRecord,
    RecordError,
    Source,
)
from regionclip_jax.ops.host_boxes import host_scale_boxes
from regionclip_jax.text.tokenizer import TokenizerSource


class Skipped(NamedTuple):
    """Skipped record. ``text`` names source, key and reason."""

    text: str


class ImageExample(NamedTuple):
    """``image`` uint8 [h, w, 3]."""

    image: np.ndarray


class ImageTextExample(NamedTuple):
    """``image`` uint8 [h, w, 3] and ``tokens`` int32 [L]."""

    image: np.ndarray
    tokens: np.ndarray


class DetectionExample(NamedTuple):
    """``boxes`` float32 [n, 4] in pixels of the resized ``image``; ``scale`` (y, x) of the resize.

    ``key`` is the record's, for messages; ``masks`` are uint8 [n, P, P] over each box, or None.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    image_id: int
    scale: np.ndarray
    key: str
    masks: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part of each global batch that one process loads; positions stay global.

    Args:
        batch_size: size of the global batch.
        index, count: index of this process and number of processes.
    """

    batch_size: int
    index: int
    count: int

    def __post_init__(self):
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ValueError(f"process_index {self.index} is not below process_count {self.count}")
        if self.batch_size < 1 or self.batch_size % self.count:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of the {self.count} processes: "
                "choose another batch size"
            )

    @property
    def local_batch_size(self) -> int:
        """Number of records of each batch that this process loads."""
        return self.batch_size // self.count

    def global_position(self, local: int) -> int:
        """Return the position in the global order of this process's ``local``-th record."""
        batch, row = divmod(local, self.local_batch_size)
        return batch * self.batch_size + self.index * self.local_batch_size + row


@dataclasses.dataclass(frozen=True)
class ImageLoading:
    """Decoding and resizing of images.

    Args:
        short_sides, max_long_side: limits in pixels; None keeps the sizes of images.
        resize_method: see ``transforms.resized_size``.
        canvas_sizes: available canvases.
    """

    short_sides: tuple[int, ...] | None
    max_long_side: int | None
    resize_method: str
    canvas_sizes: tuple[Size, ...]

    def load(
        self,
        record: ImageTextRecord | DetectionRecord,
        source: str,
        *,
        rng: np.random.Generator | None = None,
        canvas_sizes: tuple[Size, ...] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the resized image and its resize factors (y, x).

        Args:
            source: ``repr`` of the source, for errors.
            rng: draws one of the short sides; None takes the first.
            canvas_sizes: canvases allowed for this image; None allows all.

        Raises:
            RecordError: not decodable, of another size than annotated, or larger than every canvas.
        """
        image, scale = self.resize(decode_image_of(record, source), rng)
        require_canvas(canvas_sizes or self.canvas_sizes, *image.shape[:2], source, record.key)
        return image, scale

    def resize(
        self, original: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator | None = None
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, " 2"]]:
        """Return the resized image and its resize factors (y, x); ``rng`` as in ``load``."""
        image = original
        if self.short_sides is not None:
            choice = 0 if rng is None else rng.integers(len(self.short_sides))
            image = resize_short_side(
                original, self.short_sides[choice], self.max_long_side, self.resize_method
            )
        return image, np.divide(image.shape[:2], original.shape[:2], dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class LoadImageText:
    """Map from local position to image-text example; a pure function of seed and position.

    Args:
        source: image-text records.
        order: global position -> index of a record.
        buckets: bucket of each record, if assigned before loading.
        flip_probability: probability of a mirrored image.
        flip_directional_captions: mirror also images whose caption mentions left or right.
        seed: seeds the generator of a sample, together with the global position.
        tokenizer: of the model.
        context_length: tokens a caption is cut or padded to.
    """

    source: Source[ImageTextRecord]
    order: grain.MapDataset[int]
    buckets: Buckets | None
    shard: Shard
    images: ImageLoading
    flip_probability: float
    flip_directional_captions: bool
    seed: int
    tokenizer: TokenizerSource
    context_length: int

    def __call__(self, local: int) -> ImageTextExample | Skipped:
        position = self.shard.global_position(local)
        rng = np.random.default_rng((self.seed, position))
        name = repr(self.source)
        try:
            index = self.order[position]
            record = self.source[index]
            canvases = None if self.buckets is None else (self.buckets.canvas(index),)
            image, _ = self.images.load(record, name, rng=rng, canvas_sizes=canvases)
            mirrored = rng.random() < self.flip_probability
            caption = choose_caption(record, rng, source=name)
            if mirrored and (self.flip_directional_captions or not mentions_direction(caption)):
                image = flip_image(image)
        except RecordError as error:
            return Skipped(str(error))
        (tokens,) = self.tokenizer.load()([caption], self.context_length)
        return ImageTextExample(image, tokens)


@dataclasses.dataclass(frozen=True)
class LoadImage:
    """Map from local position to image; a pure function of seed and position.

    Args:
        source: image-text records, whose texts are not read.
        order, buckets, flip_probability, seed: as in ``LoadImageText``.
    """

    source: Source[ImageTextRecord]
    order: grain.MapDataset[int]
    buckets: Buckets | None
    shard: Shard
    images: ImageLoading
    flip_probability: float
    seed: int

    def __call__(self, local: int) -> ImageExample | Skipped:
        position = self.shard.global_position(local)
        rng = np.random.default_rng((self.seed, position))
        index = self.order[position]
        canvases = None if self.buckets is None else (self.buckets.canvas(index),)
        name = repr(self.source)
        try:
            image, _ = self.images.load(self.source[index], name, rng=rng, canvas_sizes=canvases)
        except RecordError as error:
            return Skipped(str(error))
        return ImageExample(flip_image(image) if rng.random() < self.flip_probability else image)


@dataclasses.dataclass(frozen=True)
class LoadDetection:
    """Map from local position to evaluation example without crowd boxes; None past the end."""

    source: Source[DetectionRecord]
    shard: Shard
    images: ImageLoading

    def __call__(self, local: int) -> DetectionExample | Skipped | None:
        position = self.shard.global_position(local)
        if position >= len(self.source):
            return None
        name = repr(self.source)
        try:
            record = self.source[position]
            image, scale = self.images.load(record, name)
        except RecordError as error:
            return Skipped(str(error))
        kept = ~record.crowd
        boxes = host_scale_boxes(record.boxes[kept], scale)
        return DetectionExample(
            image, boxes, record.classes[kept], record.image_id, scale, record.key
        )
