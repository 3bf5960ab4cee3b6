"""One record to one example: decoded, resized, flipped, tokenised; or a fault in its place.

What is here runs in worker processes, so it touches nothing of the device side.
"""

import dataclasses
from typing import NamedTuple

import grain
import numpy as np

from regionclip_jax.data.canvas import Size, smallest_canvas
from regionclip_jax.data.captions import choose_caption
from regionclip_jax.data.images import decode_image
from regionclip_jax.data.mixing import MixtureOrder
from regionclip_jax.data.records import DetectionRecord, ImageTextRecord, RecordError, Source
from regionclip_jax.data.transforms import (
    flip_image,
    resize_short_side,
    scale_boxes,
)
from regionclip_jax.text.tokenizer import tokenize


class Fault(NamedTuple):
    """Stands where a record could not be used. ``text`` names source, key and reason."""

    text: str


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
    """Which part of each global batch one process loads, so that positions stay global.

    Args:
        batch_size: of the global batch.
        index, count: of the process.
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
        """Records of a batch that this process loads."""
        return self.batch_size // self.count

    def global_position(self, local: int) -> int:
        """The place, in the one global order, of this process's ``local``-th record."""
        batch, row = divmod(local, self.local_batch_size)
        return batch * self.batch_size + self.index * self.local_batch_size + row


@dataclasses.dataclass(frozen=True)
class ImageLoading:
    """What happens to every picture. ``short_side`` None keeps its own size."""

    short_side: int | None
    max_long_side: int | None
    resize_method: str
    canvas_sizes: tuple[Size, ...]

    def load(self, data: bytes, source: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """The picture, and the factors (y, x) it was resized by.

        Raises:
            RecordError: not decodable, or larger than every canvas.
        """
        original = decode_image(data, source=source, key=key)
        image = original
        if self.short_side is not None:
            image = resize_short_side(
                image, self.short_side, self.max_long_side, self.resize_method
            )
        height, width = image.shape[:2]
        if smallest_canvas(self.canvas_sizes, height, width) is None:
            raise RecordError(
                source,
                key,
                f"{height} x {width} (height x width) is larger than every canvas of "
                f"{self.canvas_sizes}: add a larger canvas or resize",
            )
        return image, np.divide(image.shape[:2], original.shape[:2], dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class LoadImageText:
    """Local position -> example of contrastive training; a pure function of seed and position.

    Args:
        source: of image-text records.
        order: global position -> index of a record.
        flip_probability: of a mirrored picture.
        seed: with the global position it seeds the generator of the visit.
        context_length: tokens a caption is cut or padded to.
    """

    source: Source[ImageTextRecord]
    order: grain.MapDataset[int] | MixtureOrder
    shard: Shard
    images: ImageLoading
    flip_probability: float
    seed: int
    context_length: int
    keep_end_token: bool

    def __call__(self, local: int) -> ImageTextExample | Fault:
        position = self.shard.global_position(local)
        rng = np.random.default_rng((self.seed, position))
        name = repr(self.source)
        try:
            record = self.source[self.order[position]]
            image, _ = self.images.load(record.image, name, record.key)
            if rng.random() < self.flip_probability:
                image = flip_image(image)
            caption = choose_caption(record, rng, source=name)
        except RecordError as error:
            return Fault(str(error))
        (tokens,) = tokenize([caption], self.context_length, self.keep_end_token)
        return ImageTextExample(image, tokens)


@dataclasses.dataclass(frozen=True)
class LoadDetection:
    """Local position -> example of a detection pass, without crowd boxes; None past the end."""

    source: Source[DetectionRecord]
    shard: Shard
    images: ImageLoading

    def __call__(self, local: int) -> DetectionExample | Fault | None:
        position = self.shard.global_position(local)
        if position >= len(self.source):
            return None
        name = repr(self.source)
        try:
            record = self.source[position]
            image, scale = self.images.load(record.image, name, record.key)
        except RecordError as error:
            return Fault(str(error))
        kept = ~record.crowd
        boxes = scale_boxes(record.boxes[kept], *scale.tolist())
        return DetectionExample(
            image, boxes, record.classes[kept], record.image_id, scale, record.key
        )
