"""Build streams of batches from settings and a source."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging

from regionclip_jax.data.loading.batching import BatchError
from regionclip_jax.data.loading.buckets import Buckets
from regionclip_jax.data.loading.examples import Shard
from regionclip_jax.data.loading.pipeline import (
    detection_batches,
    image_batches,
    image_text_batches,
)
from regionclip_jax.data.sources.boxed_images import BoxedImages
from regionclip_jax.data.sources.records import known_sizes
from regionclip_jax.data.sources.skipped import SkipCounter
from regionclip_jax.settings import (
    BoxDataSettings,
    CaptionDataSettings,
    ConfigError,
    EvaluatedImages,
    ImageDataSettings,
    config_context,
)
from regionclip_jax.sharding.global_arrays import gather_json
from regionclip_jax.structures import DetectionBatch, ImageBatch, ImageTextBatch
from regionclip_jax.text.tokenizer import TokenizerSource

_NUM_REASONS = 20


def stream_batches(
    settings: CaptionDataSettings,
    source,
    *,
    tokenizer: TokenizerSource,
    batch_size: int,
    seed: int,
    start_record: int,
) -> Iterator[ImageTextBatch]:
    """Yield this process's batches from a record count on; count and limit skipped records.

    Args:
        tokenizer: of the trained model.
    """
    with config_context("data"):
        counter = SkipCounter(settings.max_skipped_fraction, settings.min_skipped_records)
        stream = image_text_batches(
            source,
            settings,
            Shard(batch_size, jax.process_index(), jax.process_count()),
            tokenizer=tokenizer,
            seed=seed,
            start_record=start_record,
            buckets=assign_buckets(settings, source),
        )
    return counted(stream, counter, lambda batch, texts: len(batch.mask), "data")


def stream_images(
    settings: ImageDataSettings, source, *, batch_size: int, seed: int, start_record: int
) -> Iterator[ImageBatch]:
    """Yield batches of images alone; all else as ``stream_batches``."""
    with config_context("data"):
        counter = SkipCounter(settings.max_skipped_fraction, settings.min_skipped_records)
        stream = image_batches(
            source,
            settings,
            Shard(batch_size, jax.process_index(), jax.process_count()),
            seed=seed,
            start_record=start_record,
            buckets=assign_buckets(settings, source),
        )
    return counted(stream, counter, lambda batch, texts: len(batch.mask), "data")


def assign_buckets(
    settings: CaptionDataSettings | ImageDataSettings | BoxDataSettings, source
) -> Buckets | None:
    """Return the bucket of each image; None without grouping or without known sizes."""
    if not settings.group_by_canvas or len(settings.canvas_sizes) == 1:
        return None
    sizes = known_sizes(source)
    if sizes is None:
        logging.warning(
            "%r does not know the sizes of its images: they come in any order, and nearly every "
            "batch needs the largest canvas",
            source,
        )
        return None
    buckets = Buckets(
        sizes,
        settings.canvas_sizes,
        settings.short_sides,
        settings.max_long_side,
        settings.resize_method,
    )
    logging.info("%r: batches of one canvas each; %s", source, buckets)
    return buckets


class DetectionPass(Iterator[DetectionBatch]):
    """This process's batches of one pass; counts and limits skipped records.

    Args:
        settings: images of the evaluation.
        source: detection records.
    """

    def __init__(self, settings: EvaluatedImages, source):
        self._source, self._texts = source, []
        _require_rows(settings, source)
        with config_context("evaluation"):
            counter = SkipCounter(settings.max_skipped_fraction, minimum=1)
            shard = Shard(settings.batch_size, jax.process_index(), jax.process_count())
            stream = detection_batches(source, settings, shard)

        def count(batch: DetectionBatch, texts: list[str]) -> int:
            self._texts += texts
            # A row of padding is not a record.
            return int(batch.mask.sum()) + len(texts)

        self._batches = counted(stream, counter, count, "evaluation")

    def __next__(self) -> DetectionBatch:
        return next(self._batches)

    def report(self) -> dict[str, Any]:
        """Return what the source and the pass skipped, of all processes; all must call it.

        ``data`` has the source's own counts. ``skipped_records`` has the number of records that
        could not be read, ``reasons`` the first few reasons.
        """
        texts = gather_json(self._texts)
        data = dict(getattr(self._source, "report", {}))
        return {"data": data, "skipped_records": len(texts), "reasons": texts[:_NUM_REASONS]}


def _require_rows(settings: EvaluatedImages, source) -> None:
    """Refuse an image with too many boxes at the start, if the boxes are in memory."""
    for index in range(len(source)) if isinstance(source, BoxedImages) else ():
        _, _, crowd = source.annotations(index)
        if (number := int((~crowd).sum())) > settings.max_boxes:
            raise ConfigError(
                f"evaluation.max_boxes: {source!r}, image number {index} has {number} boxes, more "
                f"than {settings.max_boxes}; set it to at least {number}"
            )


def counted(stream: Iterator, counter: SkipCounter, count: Callable, key: str) -> Iterator:
    """Yield the batches of a stream, and count its skipped records.

    Args:
        count: (batch, texts of its skipped records) -> number of records.
        key: key of the settings, for errors.
    """
    with contextlib.closing(stream):
        try:
            for batch, texts in stream:
                counter.add(count(batch, texts), texts)
                yield batch
        except BatchError as error:
            raise ConfigError(f"{key}: {error}") from error
